"""ASYNC_COPY: the values that the option takes, when its probe runs, and what is said without the intrinsic."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from apparatus.mods import traces
from calls import attention_call, formulas, run_on

import flextrace as flex
from flextrace.kernels import registry
from flextrace.kernels.metal import MetalBackend
from flextrace.kernels.metal.async_copy.probe import NAME, why_no_async_copy
from flextrace.kernels.metal.generate import complete, kernel_text
from flextrace.kernels.simulator import SimulatorBackend, metal_kernel

NO_SIMULATOR = SimulatorBackend().unavailable()
needs_simulator = pytest.mark.skipif(NO_SIMULATOR is not None, reason=str(NO_SIMULATOR))


# ---- the option ---------------------------------------------------------------------------------------------------


def attend(backend_: str | None = None, way: str = "intrinsic", length: int = 20) -> mx.array:
    q = mx.array(np.random.default_rng(0).normal(size=(1, 1, length, 8)).astype(np.float32))
    options = {"ASYNC_COPY": way} | ({} if backend_ is None else {"BACKEND": backend_})
    return flex.flex_attention(q, q, q, kernel_options=options)


@pytest.mark.parametrize("name", ["cpu", "ops", "simulator"])
def test_every_backend_accepts_the_option(name: str) -> None:
    assert mx.allclose(attend(name), attend(name, "pipelined"), atol=1e-6)


def test_another_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="ASYNC_COPY is one of pipelined, intrinsic; got 'fast'"):
        attend("cpu", "fast")


def test_the_default_kernel_does_not_mention_the_intrinsic() -> None:
    """Newer compilers refuse a text that has it, used or not."""
    score, mask = traces("alibi", "causal")
    plain, async_ = kernel_text(formulas(score, mask)), kernel_text(formulas(score, mask), async_copy=True)
    assert "__asm" not in complete(plain) and "simdgroup_copy" not in complete(plain)
    assert complete(async_).count('__asm("air.simdgroup_async_copy_2d.p3i8.p1i8")') == 1
    assert plain.name != async_.name


# ---- the probe ----------------------------------------------------------------------------------------------------

REFUSAL = "Unable to build metal library from source\nprogram_source:9:4: error: illegal string literal in 'asm'\n  ^"


class Refused:
    """An array of MLX's graph whose kernel does not compile: that comes out at evaluation."""

    def tolist(self) -> Any:
        raise RuntimeError(f"[metal::Device] {REFUSAL}")


class Machine:
    """A metal_kernel; `probe` makes the result of the probe from what the simulator gives."""

    def __init__(self, probe: Callable[[mx.array], Any]) -> None:
        self.probe, self.probed, self.names = probe, 0, list[str]()

    def __call__(self, **definition: Any) -> Any:
        kernel = metal_kernel(**definition)
        self.names.append(definition["name"])
        if not definition["name"].startswith(f"flextrace_{NAME}"):
            assert "__asm" not in definition["header"], "the kernel with the intrinsic on a machine without it"
            return kernel

        def launch(**arguments: Any) -> list[Any]:
            self.probed += 1
            return [self.probe(kernel(**arguments)[0])]

        return launch


@needs_simulator
def test_the_simulator_s_probe_finds_the_intrinsic() -> None:
    assert why_no_async_copy(metal_kernel) is None
    assert why_no_async_copy(functools.partial(metal_kernel, lane_order="reverse")) is None


MACHINES = [
    (lambda out: Refused(), r"does not work here \(program_source:9:4: error: illegal string literal in 'asm'\)"),
    (lambda out: out * 0, r"does not work here \(it copied wrong values\)"),
]


@needs_simulator
@pytest.mark.parametrize(("probe", "message"), MACHINES, ids=["refused", "wrong"])
def test_without_the_intrinsic_one_notice_and_the_default(
    probe: Callable[[mx.array], Any], message: str, monkeypatch: pytest.MonkeyPatch, fresh_notices: None
) -> None:
    machine = Machine(probe)
    monkeypatch.setitem(registry.made, "metal", MetalBackend(machine))
    with pytest.warns(flex.FlextraceWarning, match=message) as caught:
        first = attend("metal")
    assert len(caught) == 1 and 'leave out kernel_options={"ASYNC_COPY": "intrinsic"}' in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mx.array_equal(attend("metal"), first) and mx.array_equal(attend("metal", "pipelined"), first)
    assert machine.probed == 1 and len(set(machine.names)) == len(machine.names) == 2


def test_nobody_probes_unless_asked() -> None:
    machine = Machine(lambda out: out)
    q = mx.ones((1, 1, 4, 8))
    metal = MetalBackend(machine)
    run_on(metal, attention_call(q, q, q, 1.0))
    assert machine.probed == 0
    assert metal.no_async_copy() is None and machine.probed == 1
    assert SimulatorBackend().no_async_copy() is None


@needs_simulator
@pytest.mark.parametrize("transformation", [mx.compile, mx.grad, mx.vmap])
def test_the_probe_evaluates_inside_transformations(transformation: Any) -> None:
    found: list[str | None] = []

    def function(x: mx.array) -> mx.array:
        found.append(why_no_async_copy(metal_kernel))
        return (x * 2).sum()

    mx.eval(transformation(function)(mx.ones((3, 2) if transformation is mx.vmap else 3)))
    assert found and set(found) == {None}


def test_a_machine_without_metal_says_so() -> None:
    if mx.metal.is_available():
        pytest.skip("this machine has Metal")
    assert "No Metal back-end" in str(MetalBackend().no_async_copy())


@pytest.mark.metal
@pytest.mark.skipif(not mx.metal.is_available(), reason="no Metal device")
def test_on_a_device_the_numbers_are_those_of_the_default() -> None:
    """Where its compiler refuses the intrinsic, the notice is all that is left of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", flex.FlextraceWarning)
        assert mx.array_equal(attend("metal", length=200), attend("metal", "pipelined", 200))
