"""Calls of torch, jax, numpy, Triton and mlx.nn in a mod: what the error says to write really traces, and means it."""

from __future__ import annotations

import ast
import importlib.util
import linecache
import math
import textwrap
import types
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from flextrace import tracer
from flextrace.tracer.errors import TraceError
from flextrace.tracer.porting import advice as porting
from flextrace.tracer.porting import foreign_names

MARKS = "def mod(score, b, h, q_idx, kv_idx):\n"


# ---- libraries that stand in for the real ones: a function is known by its module and name alone -------------------


class Native:
    """A compiled function, as torch.tanh (a builtin) or jnp.exp (a PjitFunction) are: no Python inside to read."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__, self.__name__ = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it must not run")


def library(module: str, names: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{name: Native(module, name) for name in names.split()})


def plain(module: str, name: str) -> Any:
    """A function that a library writes in Python, as torch.nn.functional.relu is."""
    code = compile(f"def {name}(x): raise AssertionError('it must not run')", f"{module}.py", "exec")
    scope: dict[str, Any] = {"__name__": module}
    exec(code, scope)
    return scope[name]


class Operators(types.ModuleType):
    """torch.ops and torch.ops.aten: modules that make what they are asked for, an operator of any name last."""

    __module__ = "torch._ops"

    def __getattr__(self, name: str) -> Any:
        return Operators(name) if name == "aten" else Native("torch.ops.aten", {"add": "add.Tensor"}.get(name, name))


TORCH = (
    "div tanh where clamp sigmoid bitwise_and exp2 remainder tensor zeros_like log2 max sum arange atan2 softplus add "
    "bitwise_not masked_fill zeros ones full finfo lerp exp"
)
NAMES: dict[str, Any] = {
    "mx": mx,
    "np": np,
    "nn": nn,
    "math": math,
    "torch": library("torch", TORCH),
    "F": types.SimpleNamespace(
        softplus=Native("torch._C._nn", "softplus"),
        logsigmoid=Native("torch._C._nn", "log_sigmoid"),
        gelu=Native("torch._C._nn", "gelu"),
        silu=Native("torch._C._nn", "silu"),
        relu=plain("torch.nn.functional", "relu"),
        threshold=plain("torch.nn.functional", "_threshold"),
    ),
    "special": library("torch._C._special", "special_expit"),
    "jnp": library("jax.numpy", "where clip exp maximum float32 arange zeros ones_like bool_"),
    "jax": types.SimpleNamespace(
        nn=library("jax._src.nn.functions", "sigmoid gelu"),
        lax=library("jax._src.lax.lax", "select select_n clamp cond fori_loop max"),
    ),
    "tl": library("triton.language.core", "where load cdiv program_id exp"),
    "a1": mx.array([1.0, 2.0, 3.0]),
    "n": 3,
}
for _dtype in ("float32", "int32", "float16", "long", "bool"):
    setattr(NAMES["torch"], _dtype, types.SimpleNamespace(name=_dtype))
NAMES["torch"].ops = Operators("ops")


def define(body: str, names: dict[str, Any] | None = None, head: str = MARKS) -> Any:
    text = head + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    filename = f"<porting {abs(hash(text))}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    scope = {**NAMES, **(names or {}), "__name__": "user_module"}
    exec(compile(text, filename, "exec"), scope)
    return scope["mod"]


def failure(body: str, names: dict[str, Any] | None = None) -> TraceError:
    with pytest.raises(TraceError) as caught:
        tracer.trace(define(body, names), "score_mod")
    return caught.value


# ---- what users write, and what the error tells them ---------------------------------------------------------------

TANH_GELU = foreign_names.TANH_GELU.replace("x", "score").replace("mscore", "mx")
# fmt: off
CALLS = [  # the user's expression, the replacement
    ("torch.tanh(score)", "mx.tanh(score)"),
    ("torch.tanh(score / 20) * 20", "mx.tanh(score / 20)"),
    ("torch.where(q_idx >= kv_idx, score, -float('inf'))", "mx.where(q_idx >= kv_idx, score, -float('inf'))"),
    ("torch.clamp(score, min=-30, max=30)", "mx.clip(score, -30, 30)"),
    ("torch.clamp(score, max=n)", "mx.clip(score, None, n)"),
    ("torch.clamp(score, -5.0)", "mx.clip(score, -5.0, None)"),
    ("torch.sigmoid(score)", "mx.sigmoid(score)"),
    ("torch.bitwise_and(q_idx, 3)", "mx.bitwise_and(q_idx, 3)"),
    ("torch.exp2(score - 1)", "np.exp2(score - 1)"),
    ("torch.remainder(q_idx, n)", "mx.remainder(q_idx, n)"),
    ("torch.atan2(score, 2.0)", "mx.arctan2(score, 2.0)"),
    ("torch.tensor(0.5, dtype=torch.float32)", "0.5"),
    ("torch.tensor(n)", "n"),
    ("torch.zeros_like(score)", "mx.zeros_like(score)"),
    ("torch.log2(1.0 + q_idx)", "mx.log2(1.0 + q_idx)"),
    ("torch.max(score, 0.0 * score)", "mx.maximum(score, 0.0 * score)"),
    ("F.softplus(score)", "mx.logaddexp(score, 0)"),
    ("F.softplus(score, beta=2)", "mx.logaddexp(2 * score, 0) / 2"),
    ("F.logsigmoid(score)", "-mx.logaddexp(-score, 0)"),
    ("F.gelu(score)", "0.5 * score * (1 + mx.erf(score / 2 ** 0.5))"),
    ("F.gelu(score, approximate='tanh')", TANH_GELU),
    ("torch.add(score, 1, alpha=2)", "score + 2 * 1"),
    ("torch.div(q_idx, 4, rounding_mode='floor')", "mx.floor_divide(q_idx, 4)"),
    ("F.relu(score - 1)", "mx.maximum(score - 1, 0)"),
    ("F.threshold(score, 0.1, 20)", "mx.where(score > 0.1, score, 20)"),
    ("special.special_expit(score)", "mx.sigmoid(score)"),
    ("jnp.where(q_idx > kv_idx, score, 0.0)", "mx.where(q_idx > kv_idx, score, 0.0)"),
    ("jnp.clip(score, a_min=0, a_max=1)", "mx.clip(score, 0, 1)"),
    ("jnp.maximum(score, 1)", "mx.maximum(score, 1)"),
    ("jnp.float32(q_idx)", "float(q_idx)"),
    ("jnp.zeros((), jnp.bool_)", "False"),
    ("jnp.ones_like(q_idx, jnp.bool_)", "True"),
    ("jax.nn.sigmoid(score)", "mx.sigmoid(score)"),
    ("jax.nn.gelu(score)", TANH_GELU),
    ("jax.nn.gelu(score, True)", TANH_GELU),
    ("jax.nn.gelu(score, approximate=False)", "0.5 * score * (1 + mx.erf(score / 2 ** 0.5))"),
    ("jax.lax.select(q_idx > 1, score, 0.0)", "mx.where(q_idx > 1, score, 0.0)"),
    ("jax.lax.select_n(q_idx > 1, score, 0.0)", "mx.where(q_idx > 1, 0.0, score)"),
    ("jax.lax.clamp(-1.0, score, 1.0)", "mx.clip(score, -1.0, 1.0)"),
    ("jax.lax.max(score, 1.0)", "mx.maximum(score, 1.0)"),
    ("jax.lax.cond(q_idx > 1, lambda s: s + 1, lambda s: s, score)",
     "(lambda s: s + 1)(score) if q_idx > 1 else (lambda s: s)(score)"),
    ("tl.where(q_idx > 1, score, 0.0)", "mx.where(q_idx > 1, score, 0.0)"),
    ("tl.cdiv(q_idx, 128)", "-(-q_idx // 128)"),
    ("nn.relu(score)", "mx.maximum(score, 0)"),
    ("nn.gelu(score)", "0.5 * score * (1 + mx.erf(score / 2 ** 0.5))"),
    ("nn.leaky_relu(score, 0.2)", "mx.where(score > 0, score, 0.2 * score)"),
    ("np.cbrt(score)", "mx.sign(score) * mx.abs(score) ** (1 / 3)"),
    ("np.asarray(score)", "score"),
    ("np.isclose(score, 1.0)", "mx.abs(score - 1.0) <= 1e-08 + 1e-05 * mx.abs(1.0)"),
    ("math.erfc(score)", "1 - mx.erf(score)"),
    ("mx.take(a1, h)", "a1[h]"),
    ("score.tanh()", "mx.tanh(score)"),
    ("q_idx.float()", "float(q_idx)"),
    ("(q_idx - kv_idx).float() / 2", "float(q_idx - kv_idx)"),
    ("q_idx.to(torch.float32)", "q_idx.astype(mx.float32)"),
    ("q_idx.to(dtype=torch.float16)", "q_idx.astype(mx.float32)"),
    ("(q_idx - 1).to(score.dtype)", "(q_idx - 1).astype(score.dtype)"),
    ("score.type(torch.long)", "score.astype(mx.int32)"),
    ("score.long()", "int(score)"),
    ("score.clamp(-1, 1)", "mx.clip(score, -1, 1)"),
    ("score.clamp_(min=0)", "mx.clip(score, 0, None)"),
    ("score.relu()", "mx.maximum(score, 0)"),
    ("score.masked_fill(q_idx < kv_idx, float('-inf'))", "mx.where(q_idx < kv_idx, float('-inf'), score)"),
    ("score.where(q_idx > 1, 0.0)", "mx.where(q_idx > 1, score, 0.0)"),
    ("score.detach()", "mx.stop_gradient(score)"),
    ("a1[h].tanh()", "mx.tanh(a1[h])"),
    ("q_idx.lt(kv_idx)", "mx.less(q_idx, kv_idx)"),
    ("torch.bitwise_not(q_idx > kv_idx)", "mx.bitwise_invert(q_idx > kv_idx)"),
    ("(q_idx > kv_idx).bitwise_not()", "mx.bitwise_invert(q_idx > kv_idx)"),
    ("torch.bitwise_not(q_idx)", "mx.bitwise_invert(q_idx)"),
    ("score.masked_fill(~(q_idx >= kv_idx), -1e9)",
     "mx.where(mx.logical_not(q_idx >= kv_idx), -1000000000.0, score)"),
    ("score.masked_fill(~(h > 1) & (q_idx < 3), 0.0)", "mx.where(mx.logical_not(h > 1) & (q_idx < 3), 0.0, score)"),
    ("torch.masked_fill(score, h > 1, 0.0)", "mx.where(h > 1, 0.0, score)"),
    ("torch.masked_fill(input=score, mask=h > 1, value=0.0)", "mx.where(h > 1, 0.0, score)"),
    ("torch.where(condition=h > 1, input=score, other=0.0)", "mx.where(h > 1, score, 0.0)"),
    ("torch.tanh(input=score)", "mx.tanh(score)"),
    ("torch.zeros((), dtype=torch.bool)", "False"),
    ("torch.ones(1, dtype=torch.bool, requires_grad=False)", "True"),
    ("torch.zeros((), dtype=torch.long)", "0"),
    ("torch.ones((), dtype=torch.float16)", "1.0"),
    ("torch.zeros((), dtype=score.dtype)", "0.0"),
    ("torch.zeros(1)", "0.0"),
    ("torch.full((), -1e9, dtype=score.dtype)", "-1000000000.0"),
    ("torch.full(size=(), fill_value=2.0)", "2.0"),
    ("torch.zeros_like(q_idx, dtype=torch.bool)", "False"),
    ("q_idx.new_ones((), dtype=torch.bool)", "True"),
    ("q_idx.new_ones(())", "mx.ones_like(q_idx)"),
    ("score.new_zeros(1)", "mx.zeros_like(score)"),
    ("score.new_full((), -1e9)", "-1000000000.0"),
    ("score.new_tensor(0.5, dtype=torch.float32)", "0.5"),
    ("score.to('cuda')", "score"),
    ("score.to(score.device)", "score"),
    ("score.to(torch.device('cuda'))", "score"),
    ("q_idx.to(score)", "q_idx.astype(score.dtype)"),
    ("q_idx.to('cuda', torch.float32)", "q_idx.astype(mx.float32)"),
    ("q_idx.to(device='cuda', dtype=torch.float32)", "q_idx.astype(mx.float32)"),
    ("torch.ops.aten.tanh(score)", "mx.tanh(score)"),
    ("torch.ops.aten.add(score, 1)", "mx.add(score, 1)"),
]
# fmt: on


@pytest.mark.parametrize(("call", "write"), CALLS)
def test_the_error_names_the_call_to_write(call: str, write: str) -> None:
    error = failure(f"return {call}")
    assert error.remedy == f"write {write} instead"
    calls = [node for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Call)]
    called = next(node for node in calls if isinstance(node.func, ast.Attribute))
    assert error.reason == f"{ast.unparse(called.func)} cannot run in a kernel" or "has no ." in error.reason
    column, end = error.places[-1].column, error.places[-1].end_column
    assert f"    return {call}"[column:end] == call[called.col_offset : called.end_col_offset]
    tracer.trace(define(f"return {write}"), "score_mod")


def test_the_whole_message() -> None:
    error = failure("bias = 1\nreturn score + torch.clamp(score * 2, min=0)")
    lines = str(error).splitlines()
    assert lines[0] == "cannot trace mod: torch.clamp cannot run in a kernel"
    assert lines[2:] == [
        "    return score + torch.clamp(score * 2, min=0)",
        "                   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^",
        "Remedy: write mx.clip(score * 2, 0, None) instead",
    ]


# fmt: off
LINES = [  # the user's expression, what it means in Python
    ("2 * torch.add(score, q_idx, alpha=3)", "2 * (score + 3 * q_idx)"),
    ("score - torch.lerp(score, 1.0 * kv_idx, 0.25)", "score - (0.75 * score + 0.25 * kv_idx)"),
    ("score - torch.lerp(score, end=1.0 * kv_idx, weight=0.25)", "score - (0.75 * score + 0.25 * kv_idx)"),
    ("1 / F.silu(score)", "(1 + mx.exp(-score)) / score"),
    ("2 ** F.softplus(score, 2.0)", "2 ** (mx.log(1 + mx.exp(2 * score)) / 2)"),
    ("1 + jax.lax.cond(q_idx > 1, lambda: 2.0, lambda: score)", "3.0 if q_idx > 1 else 1 + score"),
    ("torch.add(score, 1, alpha=2).abs()", "abs(score + 2)"),
    ("score * (lambda x: torch.add(x, 1, alpha=2))(h)", "score * (h + 2)"),
    ("score + torch.bitwise_not(q_idx > kv_idx)", "score + (q_idx <= kv_idx)"),
    ("score.masked_fill(~(q_idx >= kv_idx), -5.0)", "score if q_idx >= kv_idx else -5.0"),
    ("score + torch.finfo(score.dtype).min", "score - 3.4028235e38"),
    ("torch.tensor(-0.5) ** 2 + score", "score + 0.25"),
    ("score + torch.zeros((), dtype=torch.bool)", "score"),
    ("q_idx.to(score) / 2 + score.to('cuda')", "q_idx / 2 + score"),
]
# fmt: on


@pytest.mark.parametrize(("line", "meaning"), LINES)
def test_what_the_caret_marks_is_replaced_as_it_stands(line: str, meaning: str) -> None:
    wanted = tracer.trace(define(f"return {meaning}"), "score_mod").expr
    text = f"    return {line}"
    while "torch." in text or "F." in text or "jax." in text or ".masked_fill" in text or ".to(" in text:
        error = failure(text)
        place, write = error.places[-1], error.remedy.removeprefix("write ").removesuffix(" instead")
        text = text[: place.column] + write + text[place.end_column :]
    got = tracer.trace(define(text), "score_mod").expr
    grid = {"score": np.array([-1.5, 0.25, 2.0, 7.0]), "b": 0, "h": 1, "q_idx": np.array([0, 3, 2, 1]), "kv_idx": 2}
    values = [np.broadcast_to(tracer.evaluate(expr, grid, numbers=[], arrays=[]), 4) for expr in (got, wanted)]
    np.testing.assert_allclose(*values, rtol=1e-5, err_msg=text)


def test_masks_without_bounds_as_torch_makes_them() -> None:
    for call in ("q_idx.new_ones((), dtype=torch.bool)", "torch.ones((), dtype=torch.bool)", "h.new_ones(())"):
        write = failure(f"return {call}").remedy.removeprefix("write ").removesuffix(" instead")
        mask = define(f"return {write}", head="def mod(b, h, q_idx, kv_idx):\n")
        assert repr(tracer.trace(mask, "mask_mod").expr) == "True"


@pytest.mark.parametrize(
    ("body", "reason", "remedy"),
    [
        ("return torch.clamp(*[score, 1])", "torch.clamp cannot run", "write mx.clip(x, min, max) for torch.clamp(x, "),
        ("return torch.add(score, 1, out=2)", "torch.add cannot run", "write mx.add(x, y) for torch.add(x, y)"),
        ("return F.gelu(score, approximate=n)", "F.gelu cannot run", "for F.gelu(x, approximate='none')"),
        ("return list(map(torch.tanh, [score]))[0]", "torch.tanh cannot run", "write mx.tanh(x) for torch.tanh(x)"),
        ("f = score.tanh\nreturn f()", "a number in a mod has no .tanh()", "write mx.tanh(x) for x.tanh()"),
        ("return q_idx.to(*[1])", "a number in a mod has no .to()", "write x.astype(dtype) for x.to()"),
        ("return torch.zeros(*[1])", "torch.zeros cannot run", "write 0.0 for torch.zeros(*shape, **options)"),
        (
            "return torch.tensor(-1e9, device=score.device, dtype=score.dtype)",
            "a number in a mod has no attribute device",
            "leave device= out: a number is on no device",
        ),
        ("return score.data", "a number in a mod has no attribute data", "use the number itself"),
        ("return score.sum()", ".sum() reduces an array", "row_sum[q_idx]"),
        ("return torch.sum(score)", "torch.sum reduces an array", "row_sum[q_idx]"),
        ("return score + torch.arange(4)[h]", "torch.arange cannot run in a kernel", "use b, h, q_idx and kv_idx"),
        ("return tl.load(a1 + h)", "a1 still has", "index it down to one element"),
        ("return tl.load(q_idx)", "tl.load cannot run", "index the captured array"),
        ("return score + tl.program_id(0)", "tl.program_id cannot run", "use b, h, q_idx and kv_idx"),
        (
            "return jax.lax.fori_loop(0, 3, lambda i, s: s, score)",
            "fori_loop cannot run",
            "a Python `for` over a fixed",
        ),
        ("return score + np.matmul(score, score)", "np.matmul cannot run", "sum of products"),
    ],
)
def test_what_cannot_be_rewritten(body: str, reason: str, remedy: str) -> None:
    error = failure(body)
    assert reason in error.reason and remedy in error.remedy, str(error)


@pytest.mark.parametrize("name", ["mx", "np", "math"])
def test_a_remedy_that_needs_an_import(name: str) -> None:
    function = define(f"return {name}.exp(score)")
    del function.__globals__[name]
    with pytest.raises(TraceError, match=f"name '{name}' is not defined") as caught:
        tracer.trace(function, "score_mod")
    assert caught.value.remedy.startswith("add `import m") or caught.value.remedy == "add `import numpy as np`"


def test_methods_of_mlx_arrays_work() -> None:
    body = "return (score.abs() + q_idx.astype(mx.float32).square()).sqrt()"
    assert repr(tracer.trace(define(body), "score_mod").expr) == "e0 = float(q_idx)\nsqrt((abs(score) + (e0 * e0)))"


def test_plain_python_of_a_library_still_runs() -> None:
    finfo = types.SimpleNamespace(min=-3.0)
    names = {"lib": types.SimpleNamespace(finfo=finfo)}
    assert repr(tracer.trace(define("return score + lib.finfo.min", names), "score_mod").expr) == "score + number0"


# ---- captured arrays of other libraries ----------------------------------------------------------------------------


@dataclass
class Tensor:
    dtype: str = "torch.float32"
    shape: tuple[int, ...] = (3,)
    requires_grad: bool = False
    device: Any = field(default_factory=lambda: types.SimpleNamespace(type="cpu"))

    def __getitem__(self, index: Any) -> Any:
        return self


def foreign(module: str, **fields: Any) -> Any:
    return type("Array", (Tensor,), {"__module__": module})(**fields)


GPU = types.SimpleNamespace(type="cuda")


@pytest.mark.parametrize(
    ("array", "label", "convert"),
    [
        (foreign("torch"), "torch tensor", "slopes.numpy()"),
        (foreign("torch.nn.parameter", requires_grad=True), "torch tensor", "slopes.detach().numpy()"),
        (
            foreign("torch", requires_grad=True, device=GPU, dtype="torch.bfloat16"),
            "torch tensor",
            "slopes.detach().cpu().float().numpy()",
        ),
        (foreign("jaxlib._jax", dtype="float32"), "jax array", "np.asarray(slopes)"),
        (foreign("jaxlib._jax", dtype="bfloat16"), "jax array", "np.asarray(slopes.astype('float32'))"),
        (foreign("tensorflow.python.framework.ops"), "tensorflow tensor", "slopes.numpy()"),
        (foreign("tensorflow.python", dtype="bfloat16"), "tensorflow tensor", "tf.cast(slopes, tf.float32).numpy()"),
        (foreign("cupy"), "cupy array", "slopes.get()"),
    ],
)
@pytest.mark.parametrize("body", ["return score + slopes[h]", "return score * slopes"])
def test_captured_arrays(array: Any, label: str, convert: str, body: str) -> None:
    error = failure(body, {"slopes": array})
    assert error.reason == f"slopes is a {label}, which a kernel cannot read"
    assert error.remedy == f"convert it outside the mod, mx.array({convert}), and capture that"
    place = error.places[-1]
    assert f"    {body}"[place.column : place.end_column] == "slopes"


def test_a_tensor_made_in_a_mod() -> None:
    error = failure("return score + made('slopes')", {"made": {"slopes": foreign("torch")}.get})
    assert error.reason == "this gives a torch tensor, which a kernel cannot read"
    assert error.remedy == "make an mx.array outside the mod"


# ---- every row of the table ----------------------------------------------------------------------------------------

STAND_INS = """
x, y, z = score, score * 0.5 - 1.0, score + 2.0
i, j, condition, array, dtype = q_idx, kv_idx + 1, q_idx >= kv_idx, a1, mx.float32
true_fun, false_fun, numbers = (lambda *x: 1.0), (lambda *x: 2.0), [score, 1.0]
"""
GIVEN = "x y z i j condition array dtype true_fun false_fun numbers".split()
ROWS = sorted(
    {row for name in (*foreign_names.LIBRARIES, "method") for rows in porting._table(name).values() for row in rows},
    key=lambda row: row.signature,
)


def test_every_replacement_traces() -> None:
    assert len(ROWS) > 150
    for row in ROWS:
        arguments = porting._parameters(row.signature)
        options = [arg.arg for arg in arguments.args if arg.arg not in GIVEN]
        body = "\n".join([STAND_INS.strip(), *(f"{name} = 1.5" for name in options), f"return {row.write}"])
        body += ".min" if "info(" in body else ""
        body = body.replace("mx.float32", "mx.int32") if "iinfo(" in body else body
        try:
            tracer.trace(define(body), "score_mod")
        except TraceError as error:
            pytest.fail(f"{row.signature} -> {row.write}\n{error}")


def test_rows_are_written_as_python_writes_them() -> None:
    for row in ROWS:
        assert ast.unparse(ast.parse(row.write, mode="eval")) == row.write


# ---- against the real torch ----------------------------------------------------------------------------------------


# These take no tensor, compare whole tensors, or want a bound.
SKIPPED = {"tensor", "as_tensor", "asarray", "scalar_tensor", "equal", "clip", "clamp"}


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_replacements_of_torch_give_its_numbers() -> None:
    torch: Any = importlib.import_module("torch")
    functional: Any = importlib.import_module("torch.nn.functional")
    floats = {"x": [-2.5, -0.5, 0.0, 0.3, 0.9], "y": [1.5, -0.25, 2.0, 0.3, -1.0], "z": [1.0, 2.0, 3.0, 4.0, 5.0]}
    ints = {"i": [5, -7, 0, 3, 64], "j": [3, 2, 1, 1, 2]}
    numbers = {**floats, **ints, "condition": [True, False, True, True, False]}
    compared = set()
    for row in (row for rows in porting._table("torch").values() for row in rows):
        name = row.signature.partition("(")[0]
        function = getattr(torch, name, getattr(functional, name, getattr(torch.special, name, None)))
        spec = porting._parameters(row.signature)
        parameters = [arg.arg for arg in spec.args[: len(spec.args) - len(spec.defaults)]]
        if function is None or not parameters or not set(parameters) <= set(numbers) or isinstance(function, type):
            continue
        if not callable(function) or name in SKIPPED:
            continue
        wanted = function(*(torch.tensor(numbers[p]) for p in parameters)).tolist()
        body = "x, y, z, i, j, condition = [array[kv_idx] for array in columns]\nreturn "
        body += str(row.rewritten(porting.WrittenCall(name, tuple(parameters))))
        columns = [mx.array(numbers[p]) for p in ("x", "y", "z", "i", "j", "condition")]
        bound = tracer.Traces().bind(define(body, {"columns": columns}), "score_mod")
        arrays = [np.array(array) for array in bound.arrays]
        got = tracer.evaluate(bound.trace.expr, {"kv_idx": np.arange(5)}, numbers=bound.numbers, arrays=arrays)
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6, err_msg=str(row))
        compared.add(name)
    assert len(compared) > 80


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_real_torch_functions_are_known() -> None:
    torch: Any = importlib.import_module("torch")
    functional: Any = importlib.import_module("torch.nn.functional")
    names = {"torch": torch, "F": functional, "slopes": torch.tensor([0.5], dtype=torch.bfloat16)}
    for call, write in CALLS:
        if call.startswith(("torch.", "F.", "q_idx.to", "score.type")) and "threshold" not in call:
            assert failure(f"return {call}", names).remedy == f"write {write} instead"
    assert "mx.array(slopes.float().numpy())" in failure("return score * slopes[0]", names).remedy
    assert repr(tracer.trace(define("return score + torch.finfo(torch.float32).max", names), "score_mod").expr)
