"""BackwardCall, kernel -> one launch of it, or several of some rows each, as nodes of MLX's lazy graph."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from flextrace.tracer import Pattern

from ...blocks import Blocks
from ...call import AttentionCall, BackwardCall
from ...gpu.arguments import captured_arrays, flat, in_device_memory, words_of_captures
from ...gpu.captured import places_by_element
from ...gpu.extremes import extremes_of_blocks, slots_by_blocks
from ...gpu.tile_lists import Tiles, tiles_for
from ...spec import Formulas, KernelSpec
from ..device import LANES
from ..kernel import Launchable, Variant, capture_kinds
from ..launch import in_launches, join_rows
from ..params import AttentionParams, paired, words
from .plan import GradientPlan, gradient_plan
from .text import ELEMENTS, KEY, PAIRS, SEGMENTS

Load = Callable[[KernelSpec], Launchable]
THREADS = 128  # of kernels with a thread, or a simdgroup, for each number
PATTERNS = (Pattern.DIAGONAL, Pattern.DENSE, Pattern.TABLE)  # enum Pattern of pair_sums.h
WORDS_OF_PAIR = {Pattern.DIAGONAL: 1, Pattern.DENSE: 0, Pattern.TABLE: 2}
POSITIONS = (Pattern.ROW, Pattern.COLUMN, Pattern.DIAGONAL)  # enum Positions of elements.metal


class Launches:
    """What the launches of one call share."""

    def __init__(self, call: BackwardCall, load: Load) -> None:
        self.call: AttentionCall = call.call
        self.with_max: bool = call.d_max_scores is not None
        self.load: Load = load
        q, k, v = self.call.q, self.call.k, self.call.v
        self.sizes: tuple[int, ...] = (*q.shape[:3], k.shape[2])  # batch, query heads, q_len, kv_len
        self.dims: tuple[int, int] = (max(1, q.shape[3]), max(1, v.shape[3]))
        self.tensors: list[mx.array] = [q, k, v, call.d_out]
        self.words: mx.array = flat(_ints(words_of_captures(self.call.mods)))

    def rows(
        self,
        kernel: str,
        tensors: Sequence[mx.array],
        outputs: Sequence[tuple[int, mx.Dtype]],
        tail: Sequence[mx.array] = (),
        sites: tuple[int, ...] = (),
    ) -> Sequence[mx.array]:
        """The outputs of a kernel, each [batch, heads, rows, columns], of q or, for KEY, of k; last, but not of TIES,
        the sums of sites, [batch, query_heads, rows, sites], or one number that means nothing without any."""
        call, of_keys = self.call, kernel == KEY
        batch, query_heads, q_len, kv_len = self.sizes
        kv_batches, kv_heads = call.k.shape[:2]
        plan = self._plan(of_keys)
        blocks = _turned(call.blocks) if of_keys else call.blocks
        rows, others = (kv_len, q_len) if of_keys else (q_len, kv_len)
        tiles = tiles_for(blocks, plan, rows, others)
        made, arrays, behind = self._made(kernel, sites)
        groups = (kv_heads, kv_batches) if of_keys else (query_heads, batch)

        def launched(first_tile: int, count: int) -> Sequence[mx.array]:
            some = min(rows - first_tile * plan.bq, count * plan.bq)
            shapes = [(groups[1], groups[0], some, columns) for columns, _ in outputs]
            kinds = [kind for _, kind in outputs]
            if len(made.text.outputs) > len(outputs):
                shapes.append((batch, query_heads, some, len(sites)) if sites else (1, 1, 1, 1))
                kinds.append(mx.float32)
            sizes = self._sizes(tiles, first_tile, rows, others)
            return made.launch(
                inputs=[*map(in_device_memory, tensors), sizes, self.words, tiles.lists, *tail, *arrays, *behind],
                template=[("T", call.q.dtype), *plan.template(), ("BLOCKS", tiles.mode)],
                grid=(count * plan.slices * plan.threads, *groups),
                threadgroup=(plan.threads, 1, 1),
                output_shapes=shapes,
                output_dtypes=kinds,
            )

        return in_launches(launched, -(-rows // plan.bq), self._multiplies(plan), join_rows)

    def q_tiles(self, pattern: Pattern) -> int:
        """Tiles of query rows, where a kernel sums pairs."""
        return -(-self.sizes[2] // self._plan(False, WORDS_OF_PAIR[pattern]).bq)

    def pairs(
        self,
        site: int,
        pattern: Pattern,
        groups: tuple[int, int, int],
        shape: tuple[int, ...],
        tail: Sequence[mx.array],
    ) -> mx.array:
        """float32 of that shape: what the threadgroups of `groups` make of a site, as pairs.metal has it. The first of
        `groups` is 0 for one of each tile."""
        plan = self._plan(False, WORDS_OF_PAIR[pattern])
        tiles = tiles_for(self.call.blocks, plan, *self.sizes[2:])
        made, arrays, behind = self._made(PAIRS, (site,))

        def launched(first_tile: int, count: int) -> Sequence[mx.array]:
            sizes = self._sizes(tiles, first_tile, *self.sizes[2:])
            before = [*map(in_device_memory, self.tensors), sizes, self.words, tiles.lists, *tail]
            return made.launch(
                inputs=[*before, _ints([count, self.sizes[0]]), *arrays, *behind],
                template=[
                    *(("T", self.call.q.dtype), *plan.template()),
                    *(("BLOCKS", tiles.mode), ("PATTERN", PATTERNS.index(pattern))),
                ],
                grid=((groups[0] or count) * plan.threads, *groups[1:]),
                threadgroup=(plan.threads, 1, 1),
                output_shapes=[shape],
                output_dtypes=[mx.float32],
                init_value=0,
            )

        (sums,) = in_launches(launched, self.q_tiles(pattern), self._multiplies(plan), _added)
        return sums

    def elements(self, site: int, pattern: Pattern, shape: tuple[int, int, int]) -> mx.array:
        """int32 of that shape, [batches, heads, positions]: the element that a site reads at each position."""
        made, arrays, behind = self._made(ELEMENTS, (site,))
        (found,) = made.launch(
            inputs=[_ints([shape[2], self.sizes[3]]), self.words, *arrays, *behind],
            template=[("POSITIONS", POSITIONS.index(pattern)), ("THREADS", THREADS)],
            grid=(-(-shape[2] // THREADS) * THREADS, shape[1], shape[0]),
            threadgroup=(THREADS, 1, 1),
            output_shapes=[shape],
            output_dtypes=[mx.int32],
        )
        return found

    def segments(self, values: mx.array, elements: mx.array, count: int) -> mx.array:
        """float32 [count]: for each element the sum of its values, in their order; values, elements: of one shape."""
        order, starts = places_by_element(elements, count)
        simdgroups = THREADS // LANES
        made = self.load(KernelSpec(SEGMENTS, Formulas(), Variant()))
        (sums,) = made.launch(
            inputs=[flat(values), flat(order), flat(starts), _ints([count])],
            template=[("SIMDGROUPS", simdgroups)],
            grid=(-(-count // simdgroups) * THREADS, 1, 1),
            threadgroup=(THREADS, 1, 1),
            output_shapes=[(count,)],
            output_dtypes=[mx.float32],
        )
        return sums

    def _plan(self, of_keys: bool, words_of_pair: int | None = None) -> GradientPlan:
        dtype = str(self.call.q.dtype).removeprefix("mlx.core.")
        return gradient_plan(of_keys, *self.dims, dtype, words_of_pair, self.with_max)

    def _made(self, kernel: str, sites: tuple[int, ...]) -> tuple[Launchable, list[mx.array], list[mx.array]]:
        """A kernel; the captured arrays, and what it reads of their blocks."""
        mods = self.call.mods
        variant = Variant(
            by_blocks=slots_by_blocks(self.call),
            kinds=capture_kinds(mods.arrays),
            sites=sites,
            fast_math=self.call.fast_math,
        )
        made = self.load(KernelSpec(kernel, mods.formulas, variant))
        arrays = captured_arrays(mods, made.text.packed)
        return made, arrays, [extremes_of_blocks(arrays[slot]) for slot in made.text.extremes]

    def _sizes(self, tiles: Tiles, first_tile: int, rows: int, others: int) -> mx.array:
        """The numbers of attention/params.h."""
        kv_batches, kv_heads = self.call.k.shape[:2]
        params = AttentionParams(
            query_heads=self.sizes[1],
            kv_heads=kv_heads,
            kv_batches=kv_batches,
            q_len=rows,
            kv_len=others,
            scale=self.call.scale,
            **tiles.params,
            first_tile=first_tile,
            sharing=self.sizes[0] // kv_batches,
        )
        return paired(words(params))

    def _multiplies(self, plan: GradientPlan) -> int:
        """Multiplications of one tile of rows, in all heads, unmasked."""
        batch, query_heads, q_len, kv_len = self.sizes
        head, value = self.dims
        products = 2 * (head + value) if plan.of_keys else 2 * head + value
        return batch * query_heads * plan.bq * (q_len if plan.of_keys else kv_len) * products


def _added(parts: Sequence[Sequence[mx.array]]) -> Sequence[mx.array]:
    return [functools.reduce(operator.add, some) for some in zip(*parts, strict=True)]


def _ints(numbers: Sequence[int]) -> mx.array:
    return mx.array(np.array(numbers, np.int32))


def _turned(blocks: Blocks | None) -> Blocks | None:
    return None if blocks is None else blocks.transposed
