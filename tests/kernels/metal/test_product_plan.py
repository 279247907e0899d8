"""Plans of matrix products hold to their memory model, and tiles that do not fit name ones that do."""

from __future__ import annotations

import itertools
import re

import pytest

from flextrace.kernels.metal.device import FRAGMENT, THREADGROUP_BYTES
from flextrace.kernels.metal.stages.product_plan import Operands, ProductPlan, choose, plan_of

FLOAT, HALF, MIXED = Operands(4, 4, False), Operands(2, 2, True), Operands(2, 4, False, True, True)
SIZES = (1, 7, 8, 20, 33, 64, 100, 128, 1000, 4096)


def check(plan: ProductPlan) -> None:
    most = {384: 128, 512: 104, 768: 68, 1024: 52}  # 32-bit registers of a thread of M1 and M2, by threads
    allowed = next(registers for threads, registers in most.items() if plan.threads <= threads)
    assert plan.registers <= allowed and plan.threadgroup_bytes <= THREADGROUP_BYTES
    assert plan.bm % (FRAGMENT * plan.row_groups) == plan.bn % (FRAGMENT * plan.column_groups) == 0
    assert plan.bk % FRAGMENT == 0


@pytest.mark.parametrize("operands", [FLOAT, HALF, MIXED], ids=["float", "half", "mixed"])
def test_every_size_has_a_plan_within_limits(operands: Operands) -> None:
    for m, n, k in itertools.product(SIZES, SIZES, SIZES):
        plan = choose(operands, m, n, k)
        check(plan)
        assert not plan.whole and plan.bk < k + FRAGMENT
        assert plan.bm < 2 * max(m, FRAGMENT) and plan.bn < 2 * max(n, FRAGMENT), "no tile is mostly empty"


def test_the_usual_products_have_their_own_plan() -> None:
    plan = choose(FLOAT, 1024, 1024, 64)
    assert (plan.bm, plan.bn, plan.bk, plan.row_groups, plan.column_groups) == (64, 64, 16, 2, 2)
    assert choose(HALF, 1024, 1024, 64).bk == 32, "half the bytes: twice the step"
    decode = choose(HALF, 1, 4096, 128)
    assert (decode.bm, decode.bn, decode.threads) == (8, 64, 128)


def test_tiles_that_fit_are_taken_as_they_are() -> None:
    for tiles in ((8, 8), (16, 8, 8), (64, 64, 8), (128, 32, 16), (24, 40, 24), (128, 128, 8)):
        plan = plan_of(FLOAT, tiles, 64)
        check(plan)
        assert (plan.bm, plan.bn, plan.bk) == (*tiles[:2], tiles[2] if len(tiles) == 3 else 64)
        assert plan.whole == (len(tiles) == 2)
    assert plan_of(FLOAT, (128, 128, 8), 64).threads == 256, "more simdgroups where registers ask for them"


@pytest.mark.parametrize(
    ("tiles", "k"), [((64, 64, 64), 64), ((128, 128, 32), 64), ((512, 512, 8), 64), ((64, 64), 128), ((64, 8), 300)]
)
def test_tiles_that_do_not_fit_name_the_largest_that_do(tiles: tuple[int, ...], k: int) -> None:
    with pytest.raises(ValueError, match="do not fit its 32768 bytes with the registers that a thread has") as caught:
        plan_of(FLOAT, tiles, k)
    found = re.search(r"the largest that do are \(([\d, ]+)\)", str(caught.value))
    assert found is not None, caught.value
    named = tuple(int(side) for side in found[1].split(","))
    assert len(named) == len(tiles) and all(a <= b for a, b in zip(named, tiles, strict=True))
    check(plan_of(FLOAT, named, k))


def test_a_long_shared_axis_names_three_sides() -> None:
    with pytest.raises(ValueError, match=r"whole of K = 4096 .* no 2-D tiles do; use 3-D ones, up to \(64, 64, 24\)"):
        plan_of(FLOAT, (64, 64), 4096)


@pytest.mark.parametrize("tiles", [(12, 8), (8, 8, 4), (8, 0), (8,)], ids=str)
def test_tiles_are_multiples_of_a_matrix_s_side(tiles: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 8, the side of a simdgroup's matrix; use"):
        plan_of(FLOAT, tiles, 64)
