"""BackwardCall, kernel -> one launch of it, as a node of MLX's lazy graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from flextrace.tracer import Pattern

from ...blocks import Blocks
from ...call import AttentionCall, BackwardCall
from ...gpu.arguments import bits, captured_arrays, words_of_captures
from ...gpu.captured import places_by_element
from ...gpu.extremes import extremes_of_blocks, slots_by_blocks
from ...gpu.tile_lists import PARAMS, Tiles, tiles_for
from ...spec import Formulas, KernelSpec
from ..device import HOPPER
from ..hopper.maps import tensor_maps
from ..hopper.plan import HEAD_GROUP
from ..hopper.text import TENSOR_MAPS
from ..launch import Launchable
from .hopper.plan import ROWS, HopperGradientPlan, hopper_gradient_plan
from .plan import WORDS_OF_PAIR, GradientPlan, gradient_plan
from .text import ELEMENTS, KEY, PAIRS, PATTERNS, QUERY, SEGMENTS, TERMS, TIES, GradientVariant

THREADS = 128  # of kernels with a thread, or a warp, for each number
POSITIONS = (Pattern.ROW, Pattern.COLUMN, Pattern.DIAGONAL)  # enum Positions of elements.cu
LARGEST_COTANGENT = -2  # power of two that the largest one of float16 is brought to


AnyPlan = GradientPlan | HopperGradientPlan


Load = Callable[[KernelSpec], Launchable]


class Launches:
    """What the launches of one call share; q, k, v and d_out with one column at least."""

    def __init__(self, call: BackwardCall, load: Load, architecture: int) -> None:
        self.call: AttentionCall = call.call
        self.with_max: bool = call.d_max_scores is not None
        self.load: Load = load
        self.architecture: int = architecture
        q, k, v, d_out = (some_columns(x) for x in (self.call.q, self.call.k, self.call.v, call.d_out))
        self.sizes: tuple[int, ...] = (*q.shape[:3], k.shape[2])  # batch, query heads, q_len, kv_len
        self.dims: tuple[int, int] = (q.shape[3], v.shape[3])
        self.tensors: list[mx.array] = [mx.contiguous(x) for x in (q, k, v, d_out)]  # all nodes see the same memory
        self.factor: mx.array = factor_of(call.d_out)
        self.arrays: list[mx.array] = captured_arrays(self.call.mods, False)
        self.extremes: tuple[int, ...] = slots_by_blocks(self.call)

    def terms(self, call: BackwardCall, ties: Sequence[mx.array]) -> mx.array:
        """What differentiate.h reads of each row, float32 [terms, batch, query_heads, q_len]. ties: what TIES gives."""
        rows = call.lse.size
        plan = GradientPlan(False, *self.dims, self._dtype, THREADS // 32, 1, 16, 1, 1, self.with_max)
        kernel = self.load(KernelSpec(TERMS, Formulas(), GradientVariant(plan)))
        d_lse = mx.zeros_like(call.lse) if call.d_lse is None else call.d_lse
        of_max = [*ties, call.d_max_scores] if call.d_max_scores is not None else [call.lse] * 3
        (terms,) = _launch(
            kernel,
            [self.tensors[3], some_columns(call.out), call.lse, d_lse, *of_max, self.factor],
            [((4 if self.with_max else 2, *call.lse.shape), mx.float32)],
            [rows],
            (-(-rows * lanes_of_row(self.dims[1], plan.element_bytes) // THREADS), 1, 1),
            plan.threads,
        )
        return terms

    def ties(self) -> Sequence[mx.array]:
        """Of each row its largest score, and how many scores equal it; float32 [batch, query_heads, q_len] each."""
        head, batch, heads = self.dims[0], *self.sizes[:2]
        plan = gradient_plan(False, head, 1, self._dtype, self.architecture)
        tiles = tiles_for(self.call.blocks, plan, *self.sizes[2:])
        groups = (-(-self.sizes[2] // plan.bq), heads, batch)
        inputs = [*self.tensors[:2], tiles.lists]
        rows = (self.sizes[:3], mx.float32)
        return self._run(TIES, plan, tiles, groups, inputs, [rows, rows])

    def query(self, terms: mx.array, sites: tuple[int, ...]) -> Sequence[mx.array]:
        """d_q, and the sums of these sites, [batch, query_heads, q_len, sites]; one number without any."""
        batch, heads, q_len, kv_len = self.sizes
        plan = self._hopper_plan(False) or self._plan(False)
        tiles = tiles_for(self.call.blocks, plan, q_len, kv_len)
        outputs = [(self.tensors[0].shape, self.call.q.dtype), (self._of_sites(q_len, sites), mx.float32)]
        groups = _groups(plan, q_len, heads, batch)
        return self._run(QUERY, plan, tiles, groups, self._inputs(terms, tiles, plan), outputs, sites)

    def key(self, terms: mx.array, sites: tuple[int, ...]) -> Sequence[mx.array]:
        """d_k, d_v, and the sums of these sites, [batch, query_heads, kv_len, sites]; one number without any."""
        batch, _, q_len, kv_len = self.sizes
        plan = self._hopper_plan(True) or self._plan(True)
        kv_batches, kv_heads = self.call.k.shape[:2]
        tiles = tiles_for(_turned(self.call.blocks), plan, kv_len, q_len)
        outputs = [(x.shape, x.dtype) for x in self.tensors[1:3]] + [(self._of_sites(kv_len, sites), mx.float32)]
        groups = _groups(plan, kv_len, kv_heads, kv_batches)
        inputs, sharing = self._inputs(terms, tiles, plan), batch // kv_batches
        return self._run(KEY, plan, tiles, groups, inputs, outputs, sites, [sharing], turned=True)

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
        """float32 of that shape: what the blocks of `groups` make of a site, as pairs.cu has it. The first of `groups`
        is 0 for one of each tile. tail: the terms."""
        plan = self._plan(False, WORDS_OF_PAIR[pattern])
        tiles = tiles_for(self.call.blocks, plan, *self.sizes[2:])
        blocks = (groups[0] or self.q_tiles(pattern), *groups[1:])
        (sums,) = self._run(
            *(PAIRS, plan, tiles, blocks, self._inputs(tail[0], tiles, plan), [(shape, mx.float32)], (site,)),
            [self.sizes[0]],
            pattern=PATTERNS.index(pattern),
            init_value=0,
        )
        return sums

    def elements(self, site: int, pattern: Pattern, shape: tuple[int, int, int]) -> mx.array:
        """int32 of that shape, [batches, heads, positions]: the element that a site reads at each position."""
        kernel = self.load(KernelSpec(ELEMENTS, self.call.mods.formulas, GradientVariant(sites=(site,))))
        (found,) = _launch(
            kernel,
            self.arrays,
            [(shape, mx.int32)],
            [POSITIONS.index(pattern), shape[2], *self._params(tiles_for(None, _UNCUT, 1, 1), turned=False)],
            (-(-shape[2] // THREADS), shape[1], shape[0]),
            THREADS,
        )
        return found

    def segments(self, values: mx.array, elements: mx.array, count: int) -> mx.array:
        """float32 [count]: for each element the sum of its values, in their order; values, elements: of one shape."""
        kernel = self.load(KernelSpec(SEGMENTS, Formulas(), GradientVariant()))
        inputs = [values.reshape(-1), *places_by_element(elements, count)]
        groups = (-(-count // (THREADS // 32)), 1, 1)
        (sums,) = _launch(kernel, inputs, [((count,), mx.float32)], [count], groups, THREADS)
        return sums

    @functools.cached_property
    def _dtype(self) -> str:
        return str(self.call.q.dtype).removeprefix("mlx.core.")

    def _plan(self, of_keys: bool, words_of_pair: int | None = None) -> GradientPlan:
        return gradient_plan(of_keys, *self.dims, self._dtype, self.architecture, self.with_max, words_of_pair)

    def _hopper_plan(self, of_keys: bool) -> HopperGradientPlan | None:
        if self.architecture != HOPPER:
            return None
        masked = self.call.mods.mask is not None or self.call.blocks is not None
        return hopper_gradient_plan(of_keys, *self.dims, self._dtype, masked, self.with_max)

    @functools.cached_property
    def _maps(self) -> mx.array:
        """Those of q, k, v and d_out."""
        launch = self.load(KernelSpec(TENSOR_MAPS)).launch
        return tensor_maps(launch, self.tensors, [ROWS] * len(self.tensors), self._dtype)

    def _inputs(self, terms: mx.array, tiles: Tiles, plan: AnyPlan) -> list[mx.array]:
        maps = [self._maps] if isinstance(plan, HopperGradientPlan) else []
        return [*maps, *self.tensors, terms, self.factor, tiles.lists]

    def _of_sites(self, rows: int, sites: tuple[int, ...]) -> tuple[int, ...]:
        return (*self.sizes[:2], rows, len(sites)) if sites else (1,)

    def _params(self, tiles: Tiles, turned: bool) -> list[int]:
        """The numbers of attention/params.h, and words of captures. turned: rows are keys."""
        (kv_batches, kv_heads), (_, query_heads, q_len, kv_len) = self.call.k.shape[:2], self.sizes
        rows = (kv_len, q_len) if turned else (q_len, kv_len)
        masks = (tiles.params[name] for name in PARAMS)
        sizes = (query_heads, kv_heads, kv_batches, *rows, bits(self.call.scale))
        return [*sizes, *masks, *words_of_captures(self.call.mods)]

    def _run(
        self,
        name: str,
        plan: AnyPlan,
        tiles: Tiles,
        groups: tuple[int, int, int],
        inputs: Sequence[mx.array],
        outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
        sites: tuple[int, ...] = (),
        numbers: Sequence[int] = (),
        turned: bool = False,
        pattern: int = 0,
        init_value: float | None = None,
    ) -> Sequence[mx.array]:
        """One launch of a kernel that walks over tiles."""
        variant = GradientVariant(plan, tiles.mode, self.extremes, sites, pattern)
        kernel = self.load(KernelSpec(name, self.call.mods.formulas, variant))
        extremes = [extremes_of_blocks(self.arrays[slot]) for slot in self.extremes]
        scalars = [*numbers, *self._params(tiles, turned)]
        return _launch(
            *(kernel, [*inputs, *self.arrays, *extremes], outputs, scalars, groups, plan.threads),
            plan.shared_bytes,
            init_value,
        )


def _groups(plan: AnyPlan, rows: int, heads: int, batches: int) -> tuple[int, int, int]:
    """The blocks of a kernel whose own rows are these."""
    tiles = -(-rows // plan.bq)
    if isinstance(plan, HopperGradientPlan):
        return (HEAD_GROUP * tiles, -(-heads // HEAD_GROUP), batches)
    return (tiles * plan.slices, heads, batches)


def _launch(
    kernel: Launchable,
    inputs: Sequence[mx.array],
    outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
    scalars: Sequence[int],
    groups: tuple[int, int, int],
    threads: int,
    shared_memory: int = 0,
    init_value: float | None = None,
) -> Sequence[mx.array]:
    return kernel.launch(
        inputs=list(inputs),
        output_shapes=[shape for shape, _ in outputs],
        output_dtypes=[dtype for _, dtype in outputs],
        scalars=list(scalars),
        grid=(groups[0] * threads, *groups[1:]),
        threadgroup=(threads, 1, 1),
        shared_memory=shared_memory,
        init_value=init_value,
        ensure_row_contiguous=True,
    )


@dataclass(frozen=True)
class _Uncut:
    bq: int = 1
    bk: int = 1


_UNCUT = _Uncut()


def lanes_of_row(columns: int, element_bytes: int) -> int:
    """LANES_OF_ROW of terms.cu: a power of two, as many as there are pieces of 16 bytes in a row, 4 to 32.

    Example:
        >>> [lanes_of_row(columns, 2) for columns in (1, 64, 80, 128, 512)]
        [4, 8, 16, 16, 32]
    """
    pieces = -(-columns * element_bytes // 16)
    return min(32, max(4, 1 << (pieces - 1).bit_length()))


def some_columns(x: mx.array) -> mx.array:
    """The rows, with a zero in those that have nothing."""
    return x if x.shape[-1] else mx.zeros((*x.shape[:-1], 1), x.dtype)


def factor_of(d_out: mx.array) -> mx.array:
    """float32 [1]: what gradients of scores are multiplied by while they are of 16 bits. Those of float16 would be lost
    where cotangents are small: the largest one is brought near 1. A power of two, so nothing is rounded."""
    if d_out.dtype != mx.float16 or d_out.size == 0:
        return mx.ones(1)
    largest = mx.where(mx.isfinite(d_out), mx.abs(d_out), 0).max().astype(mx.float32)
    exponent = LARGEST_COTANGENT - mx.floor(mx.log2(mx.maximum(largest, 2.0**-24)))  # the least that float16 has
    return mx.power(2.0, exponent).reshape(1)


def _turned(blocks: Blocks | None) -> Blocks | None:
    return None if blocks is None else blocks.transposed
