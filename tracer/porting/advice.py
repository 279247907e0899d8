"""Calls of other libraries -> what to write in a mod instead, on the user's own arguments."""

from __future__ import annotations

import ast
import functools
import re
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from ..captures.paths import Path
from ..errors import Untraceable
from ..expr import functions

FOREIGN = frozenset({"torch", "jax", "jaxlib", "triton", "tensorflow", "cupy"})  # arrays that no kernel reads
ALIASES = {  # how a module is called by its users, the longest name first
    "torch.nn.functional": "F",
    "torch._C._nn": "F",
    "mlx.nn": "nn",
    "mlx": "mx",
    "numpy": "np",
    "jax.lax": "jax.lax",
    "jax._src.lax": "jax.lax",
    "jax._src.nn": "jax.nn",
    "jax": "jnp",
    "triton": "tl",
    "tensorflow": "tf",
}
# Expressions that need parentheses where they replace a call inside another expression.
OPEN = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Lambda)
BITWISE = (ast.BitAnd, ast.BitOr, ast.BitXor)


class WrittenCall(NamedTuple):
    """A call as its author wrote it: the texts of what is called and of its arguments.

    args: with `*` before what is spread; a call of a method has its object first.
    keywords: (name, text), the name None for `**text`.
    alone: no operator stands beside the call, so that what replaces it needs no parentheses.
    """

    function: str
    args: tuple[str, ...]
    keywords: tuple[tuple[str | None, str], ...] = ()
    alone: bool = True


class Row(NamedTuple):
    """One signature of another library, and the expression over its parameters that a mod has for it."""

    signature: str
    write: str

    @property
    def shown(self) -> str:
        """The signature without its literals."""
        return re.sub(r": [^=,)]+", "", self.signature)

    def rewritten(self, call: WrittenCall) -> str | None:
        """The replacement on the arguments of a call; None where the signature does not take them."""
        given = {name: _parsed(text) for name, text in call.keywords if name is not None}
        if len(given) < len(call.keywords) or any(arg.startswith("*") for arg in call.args):
            return None
        bound = _bound(_parameters(self.signature), [*map(_parsed, call.args)], given)
        if bound is None:
            return None
        if "condition" in bound:
            bound["condition"] = _condition(bound["condition"])
        made = _Substitute(bound).visit(_parsed(self.write))
        return ast.unparse(made) if call.alone or not isinstance(made, OPEN) else f"({ast.unparse(made)})"


def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


class Ported(Untraceable):
    """A call of `called` (a function, or the name of a method) that a kernel cannot make, with what replaces it."""

    def __init__(self, called: Any, rows: Sequence[Row], reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.called = called
        self.rows = rows

    def rewrite(self, call: WrittenCall) -> None:
        """Name the replacement on the arguments of the call as the user wrote it."""
        for row in self.rows:
            text = row.rewritten(call)
            if text is not None:
                if not isinstance(self.called, str):
                    self.reason: str = f"{call.function} cannot run in a kernel"
                self.remedy: str = f"write {text} instead"
                return


class CalledModule(Ported):
    """A call of a module of mlx.nn, which computes whole arrays."""

    def rewrite(self, call: WrittenCall) -> None:
        words = _module_words(self.called, call.function, ", ".join(call.args))
        self.reason: str = words[0]
        self.remedy: str = words[1]


def is_module(value: Any) -> bool:
    """Whether a value is one of mlx.nn's own modules."""
    return any(
        kind.__module__.startswith("mlx.nn.layers") and kind.__name__ == "Module" for kind in type(value).__mro__
    )


def module_advice(module: Any, name: str) -> Untraceable:
    """What to write for a module that is called or indexed."""
    return CalledModule(module, [], *_module_words(module, name, "..."))


def _module_words(module: Any, name: str, index: str) -> tuple[str, str]:
    reason = f"{name} is an nn.{type(module).__name__}, a module that makes arrays, and a mod sees one score at a time"
    if any(kind.__name__ == "Embedding" for kind in type(module).__mro__):
        return reason, f"index its weight: {name}.weight[{index}]"
    return reason, f"compute {name}(...) outside the mod for all positions, and index the result inside it"


def is_foreign(function: Any, args: Sequence[Any] = ()) -> bool:
    """Whether a callable computes with arrays that no kernel reads, so that it is refused for plain numbers too."""
    if functions.package_of(function) not in FOREIGN:
        return False
    name = _name(function)
    if name in ("finfo", "iinfo"):  # plain Python answers for its own types, and nothing for `score.dtype`
        return any(isinstance(arg, mx.Dtype) for arg in args)
    return bool(_rows_of(function)) or name in functions.REDUCTIONS or _sentence(name) is not None


def advice(function: Any) -> Untraceable:
    """Why `function` cannot be called on a symbolic number, and what to write instead."""
    if is_module(function):
        return module_advice(function, type(function).__name__.lower())
    name, rows = _name(function), _rows_of(function)
    package = functions.package_of(function)
    alias = next((ALIASES[start] for start in ALIASES if functions.module_of(function).startswith(start)), package)
    here = name if package in ("builtins", "__main__") else f"{alias}.{name}"
    if name in functions.REDUCTIONS and package != "builtins":
        return Ported(
            function,
            rows,
            f"{here} reduces an array, and a mod sees one score at a time",
            f"compute {here}(...) outside the mod and index the result inside it, for example row_{name}[q_idx]",
        )
    if rows:
        row = _general(rows)
        remedy = f"write {row.write} for {alias}.{row.shown}"
        return Ported(function, rows, f"{here} cannot run in a kernel", remedy)
    sentence = _sentence(name)
    if sentence is not None and package != "builtins":
        return Untraceable(f"{here} cannot run in a kernel", sentence)
    return Untraceable(
        f"{here} is not a function that a kernel can compute from one symbolic number",
        "use arithmetic, comparisons, elementwise functions of mx, math or numpy, or a helper written in Python",
    )


def method_advice(name: str) -> Untraceable:
    """What to write for an attribute that numbers in a mod do not have."""
    rows = _table("method").get(name, _table("method").get(name.removesuffix("_"), []))
    if rows:
        reason = f"a number in a mod has no .{name}(): its methods are those of an mlx array"
        return Ported(name, rows, reason, f"write {_general(rows).write} for x.{name}()")
    if name in functions.REDUCTIONS:
        return Untraceable(
            f".{name}() reduces an array, and a mod sees one score at a time",
            f"compute it outside the mod and index the result inside it, for example row_{name}[q_idx]",
        )
    from .foreign_names import ATTRIBUTES

    remedy = ATTRIBUTES.get(name, "use operators and mx functions on it")
    return Untraceable(f"a number in a mod has no attribute {name}", remedy)


def refuse_array(value: Any, path: Path) -> None:
    """Raises Untraceable for an array of another library, which a kernel cannot read."""
    kind = type(value)
    library = str(kind.__module__).split(".")[0]  # compiled types may have no text there
    if library not in FOREIGN or isinstance(value, (type, types.ModuleType)):  # torch.ops is said to have everything
        return
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        return
    label = f"{'jax' if library == 'jaxlib' else library} {'tensor' if library in ('torch', 'tensorflow') else 'array'}"
    if path.kind == "held":
        raise Untraceable(f"this gives a {label}, which a kernel cannot read", "make an mx.array outside the mod")
    raise Untraceable(
        f"{path} is a {label}, which a kernel cannot read",
        f"convert it outside the mod, mx.array({_to_numpy(value, library, str(path))}), and capture that",
    )


def _to_numpy(value: Any, library: str, name: str) -> str:
    """The expression that makes a numpy array of an array of another library."""
    half = "bfloat16" in str(value.dtype)  # numpy has no bfloat16
    if library == "cupy":
        return f"{name}.get()"
    if library in ("jax", "jaxlib"):
        return f"np.asarray({name}.astype('float32'))" if half else f"np.asarray({name})"
    if library == "tensorflow":
        return f"tf.cast({name}, tf.float32).numpy()" if half else f"{name}.numpy()"
    steps = (
        (getattr(value, "requires_grad", False), ".detach()"),
        (getattr(getattr(value, "device", None), "type", "cpu") != "cpu", ".cpu()"),
        (half, ".float()"),
    )
    return name + "".join(step for needed, step in steps if needed) + ".numpy()"


# ---- the table ---------------------------------------------------------------------------------------------------


@functools.cache
def _table(library: str) -> dict[str, list[Row]]:
    """The rows of a library by the name of the function; read when a mod first needs them."""
    from .foreign_names import LIBRARIES, METHODS

    by_name: dict[str, list[Row]] = {}
    for signature, write in (METHODS if library == "method" else LIBRARIES.get(library, {})).items():
        by_name.setdefault(signature.partition("(")[0], []).append(Row(signature, write))
    return by_name


def _sentence(name: str) -> str | None:
    """What to do instead of a function that no expression replaces."""
    from .foreign_names import ADVICE

    return ADVICE.get(name)


def _rows_of(function: Any) -> list[Row]:
    module = functions.module_of(function)
    package = {"jaxlib": "jax", "scipy": "numpy"}.get(module.split(".")[0], module.split(".")[0])
    library = "jax.lax" if package == "jax" and ".lax" in module else package
    return _table(library).get(_name(function), [])


def _general(rows: Sequence[Row]) -> Row:
    """The first row that takes any argument, where there is one."""
    return next((row for row in rows if ":" not in row.signature), rows[0])


def _name(function: Any) -> str:
    name = str(getattr(function, "__name__", type(function).__name__))
    return name.removeprefix("special_").lstrip("_").partition(".")[0]  # torch.ops.aten has "add.Tensor"


@functools.cache
def _parameters(signature: str) -> ast.arguments:
    made = ast.parse(f"def {signature}: ...").body[0]
    assert isinstance(made, ast.FunctionDef)
    return made.args


def _bound(spec: ast.arguments, args: Sequence[ast.expr], keywords: dict[str, ast.expr]) -> dict[str, ast.expr] | None:
    """The argument of each parameter, defaults included; None where they do not fit."""
    names, only_named = [arg.arg for arg in spec.args], [arg.arg for arg in spec.kwonlyargs]
    keywords = {_synonym(name, names): value for name, value in keywords.items()}
    bound: dict[str, ast.expr] = dict(zip(names[len(names) - len(spec.defaults) :], spec.defaults, strict=True))
    bound.update(zip(names, args, strict=False))
    extra = keywords.keys() - {*names, *only_named}
    if (len(args) > len(names) and spec.vararg is None) or (extra and spec.kwarg is None):
        return None
    if any(name in keywords for name in names[: len(args)]):
        return None
    bound.update((name, value) for name, value in keywords.items() if name not in extra)
    if "dtype" in bound:
        dtype = _dtype(bound["dtype"])
        if dtype is None:
            return None
        bound["dtype"] = dtype
    if "device" in bound and not _is_device(bound["device"]):
        return None
    for arg in (*spec.args, *spec.kwonlyargs):
        literal = arg.annotation
        if literal is not None and arg.arg in bound and ast.dump(bound[arg.arg]) != ast.dump(literal):
            return None
    return bound if len(bound) == len(names) + len(only_named) else None


def _synonym(keyword: str, names: Sequence[str]) -> str:
    """The row's own name for a parameter of torch."""
    from .foreign_names import SYNONYMS

    return next((name for name in SYNONYMS.get(keyword, ()) if name in names and keyword not in names), keyword)


def _dtype(node: ast.expr) -> ast.expr | None:
    """An array type as a mod writes it: `torch.float16` is mx.float32 there; `x.dtype` stays as it is."""
    name = getattr(node, "attr", getattr(node, "id", getattr(node, "value", None)))
    if name == "dtype":
        return node
    from .foreign_names import DTYPES

    known = DTYPES.get(str(name))
    return None if known is None else ast.parse(known, mode="eval").body


def _is_device(node: ast.expr) -> bool:
    """Whether an expression says where a tensor is: `"cuda"`, `0`, `score.device`, `torch.device("cuda")`, `device`."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (str, int)) and not isinstance(node.value, bool)
    named = node.func if isinstance(node, ast.Call) else node
    return "dev" in str(getattr(named, "attr", getattr(named, "id", ""))).lower()


def _condition(node: ast.expr) -> ast.expr:
    """A condition with mx.logical_not for the `~` of bool tensors."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ast.Call(ast.parse("mx.logical_not", mode="eval").body, [_condition(node.operand)], [])
    if isinstance(node, ast.BinOp) and isinstance(node.op, BITWISE):
        return ast.BinOp(_condition(node.left), node.op, _condition(node.right))
    return node


class _Substitute(ast.NodeTransformer):
    """Parameters -> the user's arguments."""

    def __init__(self, bound: dict[str, ast.expr]) -> None:
        self.bound = bound

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.bound.get(node.id, node)
