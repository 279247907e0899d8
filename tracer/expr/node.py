"""Python values -> Expr: the one node type, and the table of its operations.

An `Expr` is frozen and interned: two equal expressions are one object, so equality is identity, common
subexpressions are shared for free, and a root can serve as a dictionary key.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..locks import renew_at_fork

DType = Literal["bool", "int", "float"]
INDICES = ("b", "h", "q_idx", "kv_idx")


@dataclass(frozen=True)
class Op:
    """One row of the table: what an operation takes and what it gives.

    `takes` is the dtype of every argument ("same" = any one dtype for all of them), `gives` the result
    ("same" = that of the arguments).
    """

    arity: int
    takes: str
    gives: str


def _rows(names: str, arity: int, takes: str, gives: str) -> dict[str, Op]:
    return {name: Op(arity, takes, gives) for name in names.split()}


OPS: dict[str, Op] = {
    **_rows("add sub mul min max", 2, "number", "same"),
    **_rows("floor_div mod", 2, "number", "same"),
    **_rows("neg abs", 1, "number", "same"),
    **_rows("div pow atan2", 2, "float", "float"),
    **_rows("shl shr bit_and bit_or bit_xor", 2, "int", "int"),
    **_rows("bit_not", 1, "int", "int"),
    **_rows("lt le eq ne", 2, "number", "bool"),
    **_rows("and or xor", 2, "bool", "bool"),
    **_rows("not", 1, "bool", "bool"),
    **_rows("to_float to_int", 1, "any", "cast"),
    **_rows("exp exp2 expm1 log log2 log10 log1p sqrt rsqrt erf sigmoid", 1, "float", "float"),
    **_rows("sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh", 1, "float", "float"),
    **_rows("floor ceil trunc round", 1, "float", "float"),
    **_rows("stop_gradient", 1, "float", "float"),
    "where": Op(3, "where", "same"),
    "load": Op(-1, "int", "element"),
}
COMPARISONS = frozenset({"lt", "le", "eq", "ne"})
COMMUTATIVE = frozenset({"add", "mul", "eq", "ne", "and", "or", "xor", "bit_and", "bit_or", "bit_xor"})


NOW, AT_CALL, IN_KERNEL = 0, 1, 2
_STAGES = {"param": AT_CALL, "index": IN_KERNEL, "score": IN_KERNEL, "load": IN_KERNEL}
_FIELDS = ("op", "dtype", "args", "value", "stage", "varies")


class Expr:
    """One node: `op` applied to `args`, with a `dtype` and, for leaves and loads, a `value`.

    value: the Python number of a `const`, the name of an `index`, the slot of a `param`, and
        `(slot, element type)` of a `load`, whose args are the indices.
    stage: when the value is known: while tracing (NOW), at each call from captured numbers (AT_CALL), or only
        inside the kernel (IN_KERNEL).
    varies: the names of the indices that it depends on, and "score".

    Example:
        >>> import flextrace as flex
        >>> node = flex.mods.causal.expr
        >>> node, node.op, node.args, sorted(node.varies)
        (kv_idx <= q_idx, 'le', (kv_idx, q_idx), ['kv_idx', 'q_idx'])
    """

    __slots__ = ("__weakref__", "args", "dtype", "op", "stage", "value", "varies")
    op: str
    dtype: DType
    args: tuple[Expr, ...]
    value: Any
    stage: int
    varies: frozenset[str]

    def __new__(cls, op: str, dtype: DType, args: tuple[Expr, ...] = (), value: Any = None) -> Expr:
        # -0.0 == 0.0 and nan != nan as dictionary keys, so a float is keyed by its bits.
        key = (op, dtype, args, struct.pack("d", value) if isinstance(value, float) else (type(value), value))
        with _lock:
            node = _interned.get(key)
            if node is None:
                node = super().__new__(cls)
                stage = max([_STAGES.get(op, NOW), *(arg.stage for arg in args)])
                own = {"index": {value}, "score": {"score"}}.get(op, ())
                varies = frozenset(own).union(*(arg.varies for arg in args))
                for name, field in zip(_FIELDS, (op, dtype, args, value, stage, varies), strict=True):
                    object.__setattr__(node, name, field)
                _interned[key] = node
            return node

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("an Expr is frozen: build a new one")

    def __reduce__(self) -> tuple[Any, ...]:
        return (Expr, (self.op, self.dtype, self.args, self.value))

    def __copy__(self) -> Expr:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Expr:
        return self

    def __bool__(self) -> bool:
        raise TypeError("a symbolic value has no truth value in Python; use where(...)")

    def __repr__(self) -> str:
        return _printer(self)


def _plainly(node: Expr) -> str:
    """How nodes show themselves until `print_by` says better."""
    return f"{node.op}({', '.join(map(_plainly, node.args))})" if node.args else f"{node.op} {node.value}"


_printer: Callable[[Expr], str] = _plainly


def print_by(printer: Callable[[Expr], str]) -> None:
    """Expressions show themselves by `printer` from now on: the notation of Python stands above the nodes."""
    global _printer
    _printer = printer


_lock = threading.RLock()
renew_at_fork(sys.modules[__name__])
_interned: weakref.WeakValueDictionary[Any, Expr] = weakref.WeakValueDictionary()

SCORE = Expr("score", "float")
B, H, Q_IDX, KV_IDX = (Expr("index", "int", value=name) for name in INDICES)
TRUE, FALSE = Expr("const", "bool", value=True), Expr("const", "bool", value=False)


def const(value: bool | int | float) -> Expr:
    """A number as a node; ints must fit int32, floats are rounded to float32."""
    if isinstance(value, bool):
        return TRUE if value else FALSE
    if isinstance(value, int):
        if not -(2**31) <= value < 2**31:
            raise OverflowError(f"{value} does not fit int32, the integer type of kernels; write {value}.0")
        return Expr("const", "int", value=int(value))  # an enum gives its number
    return Expr("const", "float", value=round_to_float32(value))


def round_to_float32(value: float) -> float:
    return ctypes.c_float(value).value  # one too large becomes infinite, where struct refuses it from 3.14 on


def apply(op: str, *args: Expr, value: Any = None) -> Expr:
    """`op` on already converted arguments; the result's dtype follows from the table."""
    row = OPS[op]
    if row.arity >= 0 and len(args) != row.arity:
        raise TypeError(f"{op} takes {row.arity} arguments, not {len(args)}")
    if row.gives == "cast":
        dtype: Any = op.removeprefix("to_")
    elif row.gives == "element":
        dtype = element_dtype(value[1])
    else:
        dtype = args[-1].dtype if row.gives == "same" else row.gives
    dtypes = {arg.dtype for arg in (args[1:] if op == "where" else args)}
    wanted = {"number": {"int", "float"}, "any": {"bool", "int", "float"}, "where": {"bool", "int", "float"}}
    if len(dtypes) > 1 or not dtypes <= wanted.get(row.takes, {row.takes}):
        raise TypeError(f"{op} on {[arg.dtype for arg in args]}")
    return Expr(op, dtype, args, value)


def element_dtype(element: str) -> DType:
    """The Expr dtype that an array's element type ("float16", "uint8", ...) is read as."""
    if element == "bool":
        return "bool"
    return "float" if element.startswith(("float", "bfloat")) else "int"


def walk(*roots: Expr) -> Iterator[Expr]:
    """Every node below the roots once, arguments first."""
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args) if arg not in seen)


def leaves(root: Expr, ops: Iterable[str]) -> set[Expr]:
    """The distinct nodes below `root` whose op is among `ops`."""
    wanted = set(ops)
    return {node for node in walk(root) if node.op in wanted}


def rebuild(root: Expr, change: Callable[[Expr, tuple[Expr, ...]], Expr]) -> Expr:
    """`root` with `change(node, new_args) -> Expr` applied to every node, arguments first."""
    new: dict[Expr, Expr] = {}
    for node in walk(root):
        new[node] = change(node, tuple(new[arg] for arg in node.args))
    return new[root]
