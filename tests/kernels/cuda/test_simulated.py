"""The cuda backend's kernels on the host, thread by thread: right against float64, and each planted mistake is seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import zoo
from apparatus import simulated
from apparatus.cuda import translate
from apparatus.cuda.simulated import simulated_cuda
from apparatus.simulated import DTYPES, ORDERS, SHAPES, Shape

from flextrace.kernels.cuda import backend
from flextrace.kernels.cuda.backend import CudaBackend
from flextrace.kernels.cuda.generate import FOLDER
from flextrace.kernels.simulator.report import SimulationError

SMALL: Shape = (1, 2, 70, 32, 1, 1, 100, 24)


def check(
    shape: Shape,
    dtype: str,
    names: tuple[str, ...] = (),
    order: str = "forward",
    block_size: int | None = None,
    change: Callable[[str], str] | None = None,
) -> None:
    many = mock.patch.object(backend, "plan_of", lambda call: None)  # few rows have kernels of their own
    with simulated_cuda(order=order, change=change), many:
        simulated.check(shape, dtype, names, order, block_size, on=CudaBackend())


@pytest.mark.sampled(40)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: str, order: str) -> None:
    check(SHAPES[shape], dtype, order=order)


@pytest.mark.sampled(80)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_zoo(name: str, dtype: str) -> None:
    check((2, 3, 37, 16, 2, 3, 75, 16), dtype, (name,))


@pytest.mark.sampled(18)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block_size", [16, 24, 64, 128])
@pytest.mark.parametrize("names", [("causal",), ("alibi", "causal"), ("document_ids",)], ids="+".join)
def test_block_masks(names: tuple[str, ...], block_size: int, order: str) -> None:
    check((2, 2, 140, 16, 2, 1, 150, 16), "float16", names, order, block_size)


# A mistake, where it is, and what is to be seen: a finding, or a wrong number.
MISTAKES = {
    "rows of a fragment": ('"r"(a[0]), "r"(a[1])', '"r"(a[1]), "r"(a[0])', "Not equal to tolerance"),
    "halves of the keys": ('"r"(b0), "r"(b1)', '"r"(b1), "r"(b0)', "Not equal to tolerance"),
    "a wait for the keys": ("ptx::cp_async_wait_group<0>();", "", "Not equal to tolerance"),
    "a wait for the values": ("ptx::cp_async_wait_group<1>();", "", "Not equal to tolerance|race|uninitialised"),
    "a barrier before the product": ("wait_group<0>();\n    __syncthreads();", "wait_group<0>();\n", "race"),
    "a barrier after the product": ("walk.next();\n    __syncthreads();", "walk.next();\n", "race"),
    "a row beyond the last": ("first + row < rows.count", "first + row <= rows.count", "out of bounds"),
    "an address of half a row": ("(lane >> 4) * 8", "(lane >> 4) * 4", "misaligned"),
    "a row too many": ("exists = row < p.q_len;", "exists = row <= p.q_len;", "out of bounds|overlapping"),
    "the lanes of a row": (
        "__shfl_xor_sync(EVERY_LANE, x, 1)",
        "__shfl_xor_sync(EVERY_LANE, x, 4)",
        "Not equal to tolerance",
    ),
    "the order of a pair": ("f16x2_of_f32(second, first)", "f16x2_of_f32(first, second)", "Not equal to tolerance"),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_seen(mistake: str) -> None:
    right, wrong, seen = MISTAKES[mistake]

    def plant(text: str) -> str:
        if right not in text:
            raise LookupError(right)
        return text.replace(right, wrong, 1)

    with pytest.raises((SimulationError, AssertionError)) as found:
        check(SMALL, "float16", change=plant)
    assert re.search(seen, str(found.value))


def test_ptx_stands_in_one_file_and_each_instruction_has_a_twin() -> None:
    texts = {path.relative_to(FOLDER).as_posix(): path.read_text(encoding="ascii") for path in _sources()}
    hopper = {"hopper/barriers.h", "hopper/maps.cu", "hopper/wgmma.h"}  # no twins: seen right on a GPU only
    assert {name for name, text in texts.items() if translate.instructions_of(text)} == {"tile/ptx.h", *hopper}
    known = {re.match(r"void ptx_(\w+)", line)[1] for line in translate.prototypes()}  # type: ignore[index]
    assert translate.instructions_of(texts["tile/ptx.h"]) - known == set()


def _sources() -> list[Path]:
    return [path for path in FOLDER.rglob("*") if path.suffix in (".h", ".cu")]
