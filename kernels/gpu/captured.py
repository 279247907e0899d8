"""Sites of a call, and the sums that kernels make of them -> the gradients of captured arrays.

Each site's pattern says who adds what (tracer/expr/access.py). ROW and COLUMN: the kernels of q and of k sum over a
row and over a column. DIAGONAL, DENSE, TABLE: a kernel sums pairs (captured/pairs of the backend). Where an index does
not vary with batch, head or position, these sums are added up; then each position's goes to the element that is read
there, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx

from flextrace.tracer import Pattern, Site

from ..call import BackwardCall

MOST_BYTES = 2**30  # of memory for the sums of one site
GROUPS = 64  # threadgroups that sum pairs, at least, where there are so many tiles


class Launches(Protocol):
    """What it takes of a backend: launches of its kernels for one call."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch, query heads, q_len, kv_len."""

    def q_tiles(self, pattern: Pattern) -> int:
        """Tiles of query rows, where a kernel sums pairs."""

    def pairs(
        self,
        site: int,
        pattern: Pattern,
        groups: tuple[int, int, int],
        shape: tuple[int, ...],
        tail: Sequence[mx.array],
    ) -> mx.array:
        """float32 of that shape: what the blocks of `groups` make of a site. The first of `groups` is 0 for one of each
        tile."""

    def elements(self, site: int, pattern: Pattern, shape: tuple[int, int, int]) -> mx.array:
        """int32 of that shape, [batches, heads, positions]: the element that a site reads at each position."""

    def segments(self, values: mx.array, elements: mx.array, count: int) -> mx.array:
        """float32 [count]: for each element the sum of its values, in their order; values, elements: of one shape."""


def places_by_element(elements: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """int32 each: the places of `elements` sorted by element; where each one's begin there, and the last one's end."""
    elements = elements.reshape(-1)
    places = mx.arange(elements.size, dtype=mx.int64)
    order = mx.argsort(elements.astype(mx.int64) * elements.size + places).astype(mx.int32)
    counts = mx.zeros(count + 1, mx.int32).at[elements + 1].add(1)  # integers: in any order
    return order, mx.cumsum(counts)


def wanted_sites(call: BackwardCall, pattern: Pattern) -> tuple[int, ...]:
    """The numbers of the sites that read arrays whose gradients are wanted, in this pattern."""
    sites = enumerate(call.call.mods.formulas.sites)
    return tuple(number for number, site in sites if site.slot in call.wanted and site.pattern == pattern)


def array_gradients(
    call: BackwardCall, run: Launches, of_rows: mx.array, of_columns: mx.array, tail: Sequence[mx.array]
) -> tuple[mx.array, ...]:
    """The gradients of `call.wanted`; of_rows, of_columns: the sums of ROW and COLUMN sites, sites last."""
    found: dict[int, mx.array] = {}
    for pattern, sums in ((Pattern.ROW, of_rows), (Pattern.COLUMN, of_columns)):
        for i, number in enumerate(wanted_sites(call, pattern)):
            _add(found, call, number, _by_position(call, run, number, pattern, sums[..., i]))
    for pattern in (Pattern.DIAGONAL, Pattern.DENSE, Pattern.TABLE):
        for number in wanted_sites(call, pattern):
            _add(found, call, number, _of_pairs(call, run, number, tail))
    gradients = []
    for slot in call.wanted:
        array = call.call.mods.arrays[slot]
        gradient = found[slot].reshape(array.shape)
        stream = mx.cpu if array.dtype == mx.float64 else None
        gradients.append(gradient.astype(array.dtype, stream=stream))
    return tuple(gradients)


def _add(found: dict[int, mx.array], call: BackwardCall, number: int, gradient: mx.array) -> None:
    slot = call.call.mods.formulas.sites[number].slot
    found[slot] = found[slot] + gradient if slot in found else gradient


def _by_position(call: BackwardCall, run: Launches, number: int, pattern: Pattern, sums: mx.array) -> mx.array:
    """sums: [batch, query_heads, positions] -> the gradient, flat. Where an index does not vary, one stands for all."""
    site = call.call.mods.formulas.sites[number]
    along = {Pattern.ROW: {"q_idx"}, Pattern.COLUMN: {"kv_idx"}, Pattern.DIAGONAL: {"q_idx", "kv_idx"}}[pattern]
    moving = (site.varies & {"b"}, site.varies & {"h"}, site.varies & along)
    still = [axis for axis, names in enumerate(moving) if not names]
    if still:
        sums = sums.sum(still, keepdims=True)
    batches, heads, positions = sums.shape
    elements = run.elements(number, pattern, (batches, heads, positions))
    return run.segments(sums, elements, math.prod(call.call.mods.arrays[site.slot].shape))


def check_memory(call: BackwardCall, run: Launches) -> None:
    """Before any work. Raises ValueError where the sums of a site take more than MOST_BYTES."""
    for pattern in (Pattern.DIAGONAL, Pattern.DENSE, Pattern.TABLE):
        for number in wanted_sites(call, pattern):
            _sums_of_pairs(call, run, number)


class _Sums(NamedTuple):
    """How pairs sum a site: as which pattern, by how many threadgroups along each axis, into what shape."""

    pattern: Pattern
    groups: tuple[int, int, int]
    shape: tuple[int, ...]


def _sums_of_pairs(call: BackwardCall, run: Launches, number: int) -> _Sums:
    site = call.call.mods.formulas.sites[number]
    shape = tuple(call.call.mods.arrays[site.slot].shape)
    batch, heads, q_len, kv_len = run.sizes
    if site.pattern == Pattern.DIAGONAL:
        diagonals = q_len + kv_len - 1
        shares = min(run.q_tiles(site.pattern), max(1, GROUPS // (batch * heads)))
        shares = min(shares, _fit(call, site, batch * heads * diagonals))
        return _Sums(site.pattern, (shares, heads, batch), (batch, heads, shares, diagonals))
    size = math.prod(shape)
    if site.pattern == Pattern.DENSE and site.is_own(("q_idx", "kv_idx"), shape, run.sizes):
        apart = [n if site.is_own((name,), shape, run.sizes) else 1 for name, n in (("h", heads), ("b", batch))]
        return _Sums(Pattern.DENSE, (0, apart[0], apart[1]), (size,))
    shares = min(batch * heads * run.q_tiles(Pattern.TABLE), GROUPS, _fit(call, site, size))
    return _Sums(Pattern.TABLE, (shares, 1, 1), (shares, size))


def _of_pairs(call: BackwardCall, run: Launches, number: int, tail: Sequence[mx.array]) -> mx.array:
    """The gradient, flat, of a site whose pairs are summed."""
    wanted = _sums_of_pairs(call, run, number)
    sums = run.pairs(number, *wanted, tail)
    if wanted.pattern == Pattern.DIAGONAL:
        return _by_position(call, run, number, wanted.pattern, sums.sum(2))
    return sums if wanted.pattern == Pattern.DENSE else sums.sum(0)


def _fit(call: BackwardCall, site: Site, numbers: int) -> int:
    """How many times there is memory for so many numbers. Raises ValueError for none."""
    if 4 * numbers <= MOST_BYTES:
        return MOST_BYTES // (4 * numbers)
    name = call.call.mods.formulas.arrays[site.slot].name
    raise ValueError(
        f"the gradient of {name} needs {4 * numbers >> 20} MB of sums, which is over {MOST_BYTES >> 20} MB. Index it "
        'by one side, or by q_idx and kv_idx themselves, make it smaller, or use kernel_options={"BACKEND": "ops"}'
    )
