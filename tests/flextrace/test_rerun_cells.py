"""A notebook's cell that is run again and again keeps none of the mods that it defined before."""

from __future__ import annotations

import gc
import linecache
import weakref
from typing import Any

import mlx.core as mx
import pytest

import flextrace as flex
from flextrace import decorators as mod
from flextrace.tracer import Traces, underlying

CELLS = {
    "a mod": "@flex.score_mod\ndef made(score, b, h, q_idx, kv_idx):\n    return score + slopes[h] * (kv_idx - q_idx)",
    "a helper": """
        def twice(x):
            return x * 2
        @flex.mask_mod
        def made(b, h, q_idx, kv_idx):
            return twice(q_idx) >= kv_idx
    """,
    "recursion": """
        @flex.score_mod
        def made(score, b, h, q_idx, kv_idx, n=2):
            return made(score, b, h, q_idx, kv_idx, n - 1) + 1 if n else score
    """,
    "a method": """
        class Layer:
            scale = 2.0
            def bias(self, score, b, h, q_idx, kv_idx):
                return score * self.scale
        layer = Layer()
        made = flex.score_mod(layer.bias)
    """,
    "a class in a mod": """
        class Sizes:
            window = 4
        sizes = Sizes()
        @flex.mask_mod
        def made(b, h, q_idx, kv_idx):
            return q_idx - kv_idx < sizes.window if isinstance(sizes, Sizes) else True
    """,
    "a callable object": """
        class Cap:
            def __call__(self, score, b, h, q_idx, kv_idx):
                return score * 0.5
        made = flex.score_mod(Cap())
    """,
}


def run(cell: str, names: dict[str, Any]) -> Any:
    """As IPython runs a cell again: the same text under the same name, compiled anew."""
    lines = [line.removeprefix(" " * 8) for line in CELLS[cell].strip("\n").splitlines()]
    text, filename = "\n".join(lines) + "\n", f"<cell {cell}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(compile(text, filename, "exec"), names)
    return names["made"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_run_again_keeps_no_memory(cell: str) -> None:
    names = {"flex": flex, "slopes": mx.array([0.5, 0.25]), "__name__": "__main__"}
    codes: list[weakref.ref[Any]] = []
    sizes = set()
    for _ in range(14):
        made = run(cell, names)
        assert isinstance(made.expr, flex.Expr) and "expression:" in made.inspect()
        python = underlying(made.__flextrace_function__)
        assert python is not None
        codes.append(weakref.ref(python.__code__))
        del made, python
        if len(codes) >= 10:
            gc.collect()
            sizes.add(len(mod._traces._by_code))
    alive = [i for i, code in enumerate(codes) if code() is not None]
    assert set(alive) <= {0, 13}, "the first is that of the source's own cache"
    assert len(sizes) == 1


def test_traces_go_with_the_code_and_stay_with_it() -> None:
    traces = Traces()
    names = {"flex": flex, "slopes": mx.array([0.5, 0.25]), "__name__": "__main__"}
    function = run("a mod", names).__flextrace_function__
    first = traces.get(function, "score_mod")
    assert traces.get(function, "score_mod") is first and first.code is function.__code__
    twin = type(function)(function.__code__, function.__globals__)
    del function
    names.clear()
    gc.collect()
    assert len(traces._by_code) == 1, "another function has the code"
    code = twin.__code__.replace(co_name="another_name")  # not the one that the source's cache keeps
    other = type(twin)(code, {"slopes": mx.array([0.5])}, "another_name")
    with pytest.raises(flex.TraceError):
        traces.get(other, "mask_mod")
    assert len(traces._by_code) == 1


def test_what_a_trace_relies_on_is_not_kept_alive() -> None:
    """A helper that is defined again is another one, though the old one is gone and its place may be reused."""
    names: dict[str, Any] = {"flex": flex, "__name__": "__main__"}
    made = run("a helper", names)
    assert repr(made.expr) == "kv_idx <= (q_idx * 2)"
    old = weakref.ref(names["twice"])
    names["twice"] = lambda x: x
    gc.collect()
    assert old() is None and repr(made.expr) == "kv_idx <= q_idx"
