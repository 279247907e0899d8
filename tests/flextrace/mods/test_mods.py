"""flextrace.mods against dense definitions in plain numpy, written from the papers and never by calling a mod."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
from dense_masks import states

import flextrace as flex
from flextrace import mods
from flextrace.tracer.bounds.extremes import Extremes
from flextrace.tracer.bounds.tiles import bounds_of

Dense = np.ndarray
RNG = np.random.default_rng(7)
OFFSETS = [0, 5, 6, 6, 17, 24]


def positions(q_len: int, kv_len: int) -> tuple[Dense, Dense]:
    return np.arange(q_len)[:, None], np.arange(kv_len)[None, :]


def over_heads(*masks: Dense) -> Dense:
    return np.stack(masks)[None]


def over_batch(*masks: Dense) -> Dense:
    return np.stack(masks)[:, None]


# ---- dense definitions -----------------------------------------------------------------------------------------------


def pieces(lengths: list[int], piece: Callable[[int], Dense]) -> Dense:
    """Block-diagonal: `piece(n)` for each sequence of n tokens."""
    out = np.zeros((sum(lengths), sum(lengths)), bool)
    at = 0
    for n in lengths:
        out[at : at + n, at : at + n] = piece(n)
        at += n
    return out


def padded(kept: Dense, rows: int, keys: int) -> Dense:
    """Padding sees nothing, and nothing sees it."""
    return np.pad(kept, ((0, rows), (0, keys)))


def murmur3(seed: int, *words: Any) -> Dense:
    """MurmurHash3_x86_32 of int32 words, as its author's C has it, on arrays that broadcast: uint32."""
    with np.errstate(over="ignore"):
        state = np.uint32(seed & 0xFFFFFFFF)
        for word in words:
            k = np.asarray(word).astype(np.uint32) * np.uint32(0xCC9E2D51)
            k = (k << np.uint32(15) | k >> np.uint32(17)) * np.uint32(0x1B873593)
            state = state ^ k
            state = (state << np.uint32(13) | state >> np.uint32(19)) * np.uint32(5) + np.uint32(0xE6546B64)
        state = state ^ np.uint32(4 * len(words))
        state = (state ^ state >> np.uint32(16)) * np.uint32(0x85EBCA6B)
        state = (state ^ state >> np.uint32(13)) * np.uint32(0xC2B2AE35)
        return state ^ state >> np.uint32(16)


def drawn(seed: int, b: int, h: int, q_len: int, kv_len: int) -> Dense:
    """uniform() at every position: float64 [b, h, q_len, kv_len]."""
    return (murmur3(seed, *np.ogrid[:b, :h, :q_len, :kv_len]) >> np.uint32(8)) / 2**24


def lower(n: int) -> Dense:
    return np.tril(np.ones((n, n), bool))


def band(n: int, before: int, after: int) -> Dense:
    return np.tril(np.triu(np.ones((n, n), bool), -before), after)


def dilated(n: int, window: int, step: int) -> Dense:
    return sum(np.eye(n, k=-d, dtype=bool) for d in range(0, window, step))


def ancestors(parents: list[int]) -> Dense:
    out = np.zeros((len(parents), len(parents)), bool)
    for node in range(len(parents)):
        at = node
        while at >= 0:
            out[node, at] = True
            at = parents[at]
    return out


def axis_windows(n: int, kernel: int) -> Dense:
    """bool [n, n]: of all windows of `kernel` places inside the axis, the one whose centre is nearest to the query."""
    starts = np.arange(n - kernel + 1)
    out = np.zeros((n, n), bool)
    for x in range(n):
        first = starts[np.argmin(abs(starts + kernel // 2 - x))]
        out[x, first : first + kernel] = True
    return out


def neighbourhood(canvas: tuple[int, ...], kernel: tuple[int, ...]) -> Dense:
    out = np.ones((1, 1), bool)
    for n, k in zip(canvas, kernel, strict=True):
        out = np.kron(out, axis_windows(n, k))
    return out.astype(bool)


def tile_major(canvas: tuple[int, ...], tile: tuple[int, ...]) -> Dense:
    split = [part for n, t in zip(canvas, tile, strict=True) for part in (n // t, t)]
    dims = len(canvas)
    grid = np.arange(np.prod(canvas)).reshape(split)
    return grid.transpose(*range(0, 2 * dims, 2), *range(1, 2 * dims, 2)).ravel()


def z_curve(grid: Dense) -> list[int]:
    if grid.size == 1:
        return [int(grid[0, 0])]
    half = len(grid) // 2
    quarters = (grid[:half, :half], grid[:half, half:], grid[half:, :half], grid[half:, half:])
    return [token for quarter in quarters for token in z_curve(quarter)]


def reordered(mask: Dense, order: Any) -> Dense:
    return mask[np.ix_(order, order)]


def tiles_and_text(canvas: tuple[int, ...], kernel: tuple[int, ...], tile: tuple[int, ...], text: int) -> Dense:
    coarse = tuple(n // t for n, t in zip(canvas, tile, strict=True))
    near = neighbourhood(coarse, tuple(k // t for k, t in zip(kernel, tile, strict=True)))
    image = np.kron(near, np.ones((np.prod(tile), np.prod(tile)), bool)).astype(bool)
    return np.pad(image, (0, text), constant_values=True)


def prefix_of_causal(n: int, prefix: int) -> Dense:
    out = lower(n)
    out[:, :prefix] = True
    return out


def noised_and_clean(n: int, block: int) -> Dense:
    """The three parts of the paper's figure: M_BD, M_OBC, M_BC."""
    own = np.arange(n)[:, None] // block == np.arange(n)[None] // block
    before = np.arange(n)[:, None] // block > np.arange(n)[None] // block
    return np.block([[own, before], [np.zeros((n, n), bool), own | before]])


def video_band(n: int, frame: int, frames: int, prompt: int, first_frame: bool) -> Dense:
    out = band(n, frame * frames - 1, frame * frames - 1)
    out[:prompt] = True
    out[:, : prompt + (frame if first_frame else 0)] = True
    return out


def video_time(frame: int, count: int, reach: int, prompt: int) -> Dense:
    out = np.ones((prompt + frame * count,) * 2, bool)
    out[prompt:, prompt:] = np.tile(band(frame, reach - 1, reach - 1), (count, count))
    return out


def prompts_and_answers() -> Dense:
    """Documents 0 (a prompt), 1 and 3 (its answers), and 4 (on its own); document 2 is empty."""
    out = pieces(np.diff(OFFSETS).tolist(), lower)
    for answer in (1, 3):
        out[OFFSETS[answer] : OFFSETS[answer + 1], OFFSETS[0] : OFFSETS[1]] = True
    return out


IDS = np.sort(RNG.integers(0, 4, size=(2, 24)), axis=1)
KV_IDS = np.sort(RNG.integers(0, 4, size=18))
GLOBAL = np.isin(np.arange(24), [0, 11, 23])
MARKED = RNG.random((2, 24)) < 0.1
PARENTS = [-1, 0, 0, 1, 2, 1, 4, -1, 7, 4, 3, 8, 0]
INTERVALS = [[0, 7], [1, 7], [7, 12]]
HEADS = [True, False, True]


def either_global(marked: Dense, radius: int) -> Dense:
    return band(24, radius, radius) | marked[:, None] | marked[None]


@dataclass(frozen=True)
class Mask:
    """A factory's mask and its dense definition, bool [B or 1, H or 1, q_len, kv_len]."""

    name: str
    make: Callable[[], flex.MaskMod]
    dense: Dense

    def __str__(self) -> str:
        return self.name

    @property
    def sizes(self) -> tuple[int | None, int | None, int, int]:
        b, h, q_len, kv_len = self.dense.shape
        return b if b > 1 else None, h if h > 1 else None, q_len, kv_len


def mask(name: str, make: Callable[[], flex.MaskMod], dense: Dense) -> Mask:
    return Mask(name, make, dense.reshape((1,) * (4 - dense.ndim) + dense.shape))


MASKS = [
    mask("causal", lambda: mods.causal, lower(24)),
    mask("sliding_window", lambda: mods.sliding_window(7), band(24, 6, 0)),
    mask("sliding_window of one", lambda: mods.sliding_window(1), np.eye(24, dtype=bool)),
    mask("bidirectional_window", lambda: mods.bidirectional_window(5), band(24, 5, 5)),
    mask("bidirectional_window of none", lambda: mods.bidirectional_window(0), np.eye(24, dtype=bool)),
    mask("dilated_window", lambda: mods.dilated_window(10, 3), dilated(24, 10, 3)),
    mask("dilated_window without holes", lambda: mods.dilated_window(10, 1), band(24, 9, 0)),
    mask("global_window", lambda: mods.global_window(GLOBAL, 2), either_global(GLOBAL, 2)),
    mask(
        "global_window by batch",
        lambda: mods.global_window(mx.array(MARKED), 1),
        over_batch(*(either_global(row, 1) for row in MARKED)),
    ),
    mask("attention_sinks", lambda: mods.attention_sinks(3, 5), lower(24) & (band(24, 4, 0) | (np.arange(24) < 3))),
    mask("prefix_lm", lambda: mods.prefix_lm(6), prefix_of_causal(24, 6)),
    mask("prefix_lm of nothing", lambda: mods.prefix_lm(0), lower(24)),
    mask("prefix_lm by batch", lambda: mods.prefix_lm([2, 9]), over_batch(*(prefix_of_causal(24, n) for n in (2, 9)))),
    mask(
        "padding",
        lambda: mods.padding(mx.array([24, 9, 0])),
        over_batch(*(np.broadcast_to(np.arange(24) < n, (24, 24)) for n in (24, 9, 0))),
    ),
    mask("block_diffusion", lambda: mods.block_diffusion(12, 4), noised_and_clean(12, 4)),
    mask("block_diffusion, ragged", lambda: mods.block_diffusion(11, 3), noised_and_clean(11, 3)),
    mask("tree_ancestor", lambda: mods.tree_ancestor(PARENTS), ancestors(PARENTS)),
    mask(
        "tree_ancestor after a prefix",
        lambda: mods.tree_ancestor(mx.array(PARENTS), prefix=5),
        np.hstack([np.ones((len(PARENTS), 5), bool), ancestors(PARENTS)]),
    ),
    mask(
        "document",
        lambda: mods.document(offsets=OFFSETS),
        pieces(np.diff(OFFSETS).tolist(), lambda n: np.ones((n, n), bool)),
    ),
    mask("document by batch", lambda: mods.document(IDS), over_batch(*(row[:, None] == row[None] for row in IDS))),
    mask(
        "document of other keys",
        lambda: mods.document(mx.array(IDS), KV_IDS),
        over_batch(*(row[:, None] == KV_IDS[None] for row in IDS)),
    ),
    mask("causal_document", lambda: mods.causal_document(OFFSETS), pieces(np.diff(OFFSETS).tolist(), lower)),
    mask(
        "per_document",
        lambda: mods.per_document(mods.attention_sinks(1, 2), mx.array(OFFSETS)),
        pieces(np.diff(OFFSETS).tolist(), lambda n: lower(n) & (band(n, 1, 0) | (np.arange(n) < 1))),
    ),
    mask("shared_prefix", lambda: mods.shared_prefix(OFFSETS, [0, 0, 0, 0, 4]), prompts_and_answers()),
    mask(
        "document, padded",
        lambda: mods.document(offsets=OFFSETS),
        padded(pieces(np.diff(OFFSETS).tolist(), lambda n: np.ones((n, n), bool)), 9, 5),
    ),
    mask(
        "causal_document, padded",
        lambda: mods.causal_document(OFFSETS),
        padded(pieces(np.diff(OFFSETS).tolist(), lower), 9, 9),
    ),
    mask(
        "per_document, padded",
        lambda: mods.per_document(~mods.causal, OFFSETS),
        padded(pieces(np.diff(OFFSETS).tolist(), lambda n: ~lower(n)), 3, 17),
    ),
    mask(
        "shared_prefix, padded",
        lambda: mods.shared_prefix(OFFSETS, [0, 0, 0, 0, 4]),
        padded(prompts_and_answers(), 8, 8),
    ),
    mask("tree_ancestor, padded", lambda: mods.tree_ancestor(PARENTS), padded(ancestors(PARENTS), 0, 6)),
    mask(
        "tree_ancestor after a prefix, padded",
        lambda: mods.tree_ancestor(PARENTS, prefix=5),
        padded(np.hstack([np.ones((len(PARENTS), 5), bool), ancestors(PARENTS)]), 0, 6),
    ),
    mask("dropout", lambda: mods.dropout(0.3, seed=11), drawn(11, 2, 3, 24, 26) >= 0.3),
    mask("dropout, negative seed", lambda: mods.dropout(0.75, seed=-5), drawn(-5, 2, 2, 24, 24) >= 0.75),
    mask("batchify", lambda: mods.batchify(mods.prefix_lm(2), 8), pieces([8] * 3, lambda n: prefix_of_causal(n, 2))),
    mask("batchify, last one short", lambda: mods.batchify(mods.causal, 9), pieces([9, 9, 6], lower)),
    mask("natten 1-D", lambda: mods.natten((24,), (5,)), axis_windows(24, 5)),
    mask("natten 2-D", lambda: mods.natten((4, 6), (3, 5)), neighbourhood((4, 6), (3, 5))),
    mask("natten, even kernel", lambda: mods.natten((5, 6), (2, 4)), neighbourhood((5, 6), (2, 4))),
    mask("natten 3-D", lambda: mods.natten((3, 4, 3), (1, 3, 3)), neighbourhood((3, 4, 3), (1, 3, 3))),
    mask(
        "tiled_natten",
        lambda: mods.tiled_natten((4, 6), (3, 3), (2, 3)),
        reordered(neighbourhood((4, 6), (3, 3)), tile_major((4, 6), (2, 3))),
    ),
    mask(
        "tiled_natten 3-D",
        lambda: mods.tiled_natten((4, 4, 2), (3, 3, 2), (2, 2, 1)),
        reordered(neighbourhood((4, 4, 2), (3, 3, 2)), tile_major((4, 4, 2), (2, 2, 1))),
    ),
    mask(
        "morton_natten",
        lambda: mods.morton_natten(8, (3, 5)),
        reordered(neighbourhood((8, 8), (3, 5)), z_curve(np.arange(64).reshape(8, 8))),
    ),
    mask(
        "sliding_tile 2-D",
        lambda: mods.sliding_tile((6, 8), (6, 6), (2, 2)),
        tiles_and_text((6, 8), (6, 6), (2, 2), 0),
    ),
    mask(
        "sliding_tile 2-D, even window, text",
        lambda: mods.sliding_tile((4, 8), (2, 4), (2, 2), text=5),
        tiles_and_text((4, 8), (2, 4), (2, 2), 5),
    ),
    mask(
        "sliding_tile 3-D",
        lambda: mods.sliding_tile((4, 4, 6), (2, 4, 6), (2, 2, 2), text=3),
        tiles_and_text((4, 4, 6), (2, 4, 6), (2, 2, 2), 3),
    ),
    mask(
        "sliding_tile, padded keys",
        lambda: mods.sliding_tile((4, 8), (2, 6), (2, 2), text=3),
        np.pad(tiles_and_text((4, 8), (2, 6), (2, 2), 3), ((0, 0), (0, 4))),
    ),
    mask("spatial_head", lambda: mods.spatial_head(4, 2, prompt=3), video_band(23, 4, 2, 3, False)),
    mask(
        "spatial_head with the first frame",
        lambda: mods.spatial_head(5, 1, prompt=2, first_frame=True),
        video_band(27, 5, 1, 2, True),
    ),
    mask("temporal_head", lambda: mods.temporal_head(5, 2, prompt=3), video_time(5, 4, 2, 3)),
    mask(
        "video_heads",
        lambda: mods.video_heads(HEADS, mods.spatial_head(4, 1, prompt=2), mods.temporal_head(4, prompt=2)),
        over_heads(*(video_time(4, 5, 1, 2) if time else video_band(22, 4, 1, 2, False) for time in HEADS)),
    ),
    mask(
        "vision_cross_attention",
        lambda: mods.vision_cross_attention(INTERVALS, 3),
        np.stack([(np.arange(12) >= a) & (np.arange(12) < b) for a, b in INTERVALS for _ in range(3)], axis=1),
    ),
    mask(
        "vision_cross_attention, padded",
        lambda: mods.vision_cross_attention(INTERVALS, 3),
        padded(
            np.stack([(np.arange(12) >= a) & (np.arange(12) < b) for a, b in INTERVALS for _ in range(3)], axis=1), 0, 4
        ),
    ),
]


LATER = (4, 11)  # where the queries of two batch entries start


def later(first: int, dense: Dense, rows: int = 9) -> Dense:
    """The rows of a whole sequence's mask that queries from `first` on have."""
    return dense[first : first + rows]


def by_start(dense: Dense) -> Dense:
    return over_batch(*(later(first, dense) for first in LATER))


DOCUMENTS = pieces(np.diff(OFFSETS).tolist(), lambda n: np.ones((n, n), bool))
TEXT = np.stack([(np.arange(24) >= a) & (np.arange(24) < b) for a, b in INTERVALS for _ in range(3)], axis=1)
STARTS = mx.array(LATER)
OFFSET_MASKS = [
    mask("causal, offset", lambda: mods.causal(offset=9), later(9, lower(24))),
    mask("causal, offset 0", lambda: mods.causal(offset=0), later(0, lower(24))),
    mask(
        "causal, negative offset", lambda: mods.causal(offset=-3), np.vstack([np.zeros((3, 24), bool), lower(24)[:6]])
    ),
    mask("causal, offset array", lambda: mods.causal(offset=mx.array(9, mx.uint32)), later(9, lower(24))),
    mask("causal, offsets", lambda: mods.causal(offset=STARTS), by_start(lower(24))),
    mask("causal, offsets of numpy", lambda: mods.causal(offset=np.array(LATER)), by_start(lower(24))),
    mask("sliding_window, offset", lambda: mods.sliding_window(7, offset=np.int64(9)), later(9, band(24, 6, 0))),
    mask("sliding_window, offsets", lambda: mods.sliding_window(7, offset=STARTS), by_start(band(24, 6, 0))),
    mask("bidirectional_window, offset", lambda: mods.bidirectional_window(5, offset=9), later(9, band(24, 5, 5))),
    mask("dilated_window, offsets", lambda: mods.dilated_window(10, 3, offset=[4, 11]), by_start(dilated(24, 10, 3))),
    mask("global_window, offset", lambda: mods.global_window(GLOBAL, 2, offset=9), later(9, either_global(GLOBAL, 2))),
    mask(
        "global_window by batch, offsets",
        lambda: mods.global_window(mx.array(MARKED), 1, offset=STARTS),
        over_batch(*(later(first, either_global(row, 1)) for first, row in zip(LATER, MARKED, strict=True))),
    ),
    mask(
        "attention_sinks, offsets",
        lambda: mods.attention_sinks(3, 5, offset=STARTS),
        by_start(lower(24) & (band(24, 4, 0) | (np.arange(24) < 3))),
    ),
    mask("prefix_lm, offset", lambda: mods.prefix_lm(6, offset=3), later(3, prefix_of_causal(24, 6))),
    mask(
        "prefix_lm by batch, offsets",
        lambda: mods.prefix_lm([2, 9], offset=STARTS),
        over_batch(*(later(first, prefix_of_causal(24, n)) for first, n in zip(LATER, (2, 9), strict=True))),
    ),
    mask("document, offset", lambda: mods.document(offsets=OFFSETS, offset=9), later(9, DOCUMENTS)),
    mask(
        "document, past the end", lambda: mods.document(offsets=OFFSETS, offset=19), later(19, padded(DOCUMENTS, 9, 9))
    ),
    mask("document of ids, offset", lambda: mods.document(IDS[0], offset=9), later(9, IDS[0][:, None] == IDS[0])),
    mask(
        "causal_document, offsets",
        lambda: mods.causal_document(OFFSETS, offset=STARTS),
        by_start(pieces(np.diff(OFFSETS).tolist(), lower)),
    ),
    mask(
        "per_document, offset",
        lambda: mods.per_document(mods.sliding_window(2), OFFSETS, offset=mx.array(9)),
        later(9, pieces(np.diff(OFFSETS).tolist(), lambda n: band(n, 1, 0))),
    ),
    mask(
        "shared_prefix, offset",
        lambda: mods.shared_prefix(OFFSETS, [0, 0, 0, 0, 4], offset=9),
        later(9, prompts_and_answers()),
    ),
    mask("batchify, offset", lambda: mods.batchify(mods.causal, 8, offset=9), later(9, pieces([8] * 3, lower))),
    mask(
        "vision_cross_attention, offset",
        lambda: mods.vision_cross_attention(INTERVALS, 3, offset=5),
        later(5, TEXT),
    ),
]
MASKS += OFFSET_MASKS


def listed(counts: Any, indices: Any, columns: int) -> Dense:
    """bool [B, H, q_blocks, columns] that lists of blocks stand for."""
    counts, indices = np.array(counts), np.array(indices)
    out = np.zeros((*counts.shape, columns), bool)
    for at in np.ndindex(*counts.shape):
        out[at][indices[at][: counts[at]]] = True
    return out


@pytest.mark.parametrize("case", MASKS, ids=str)
def test_mask_equals_its_definition(case: Mask) -> None:
    mod = case.make()
    assert isinstance(mod, flex.MaskMod)
    np.testing.assert_array_equal(np.array(flex.create_mask(mod, *case.sizes)), case.dense)
    for at in zip(*(RNG.integers(0, n, 40) for n in case.dense.shape), strict=True):  # plain Python agrees
        assert bool(mod(*map(int, at))) == case.dense[at]


@pytest.mark.parametrize("case", MASKS, ids=str)
@pytest.mark.parametrize("block", [(8, 8), (3, 5)], ids=str)
def test_block_mask_covers_exactly(case: Mask, block: tuple[int, int]) -> None:
    made = flex.create_block_mask(case.make(), *case.sizes, BLOCK_SIZE=block)
    expected = states(case.dense, *block)
    columns = expected.shape[3]
    np.testing.assert_array_equal(listed(made.kv_num_blocks, made.kv_indices, columns), expected == 1)
    np.testing.assert_array_equal(listed(made.full_kv_num_blocks, made.full_kv_indices, columns), expected == 2)
    np.testing.assert_array_equal(np.array(made.to_dense()), expected > 0)


ATTENDED = ("sliding_window", "prefix_lm by batch", "tree_ancestor after a prefix", "shared_prefix", "natten 3-D")
ATTENDED += ("morton_natten", "sliding_tile 3-D", "video_heads", "vision_cross_attention", "padding")
ATTENDED += ("document, padded", "per_document, padded", "sliding_window, offsets", "causal_document, offsets")


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", [c for c in MASKS if c.name in ATTENDED], ids=str)
@pytest.mark.parametrize("prepared", [False, True], ids=["mask_mod", "BlockMask"])
def test_attention_on_the_cpu(case: Mask, prepared: bool) -> None:
    b, h, q_len, kv_len = case.sizes
    q, k, v = tensors(b or 2, h or 2, q_len, kv_len)
    mod = case.make()
    block_mask = flex.create_block_mask(mod, *case.sizes, BLOCK_SIZE=8) if prepared else mod
    options = {"BACKEND": "cpu"}
    out, lse = flex.flex_attention(q, k, v, block_mask=block_mask, return_lse=True, kernel_options=options)
    kept = np.broadcast_to(case.dense, (b or 2, h or 2, q_len, kv_len))
    expected = reference.attention(np.array(q), np.array(k), np.array(v), mask_mod=lambda *at: kept[at])
    reference.assert_close(out, expected.out, 2e-5, 2e-5, "out")
    reference.assert_close(lse, expected.lse, 2e-5, 2e-5, "lse")


def tensors(b: int, h: int, q_len: int, kv_len: int, dim: int = 8) -> tuple[mx.array, mx.array, mx.array]:
    rng = np.random.default_rng(3)
    shapes = ((b, h, q_len, dim), (b, h, kv_len, dim), (b, h, kv_len, dim))
    return tuple(mx.array(rng.normal(size=shape).astype(np.float32)) for shape in shapes)  # type: ignore[return-value]


# ---- score mods ------------------------------------------------------------------------------------------------------

B, H, L = 2, 4, 20
Q, KV = positions(L, L)
TABLE = RNG.normal(size=(H, 9)).astype(np.float32)
BUCKETS = RNG.normal(size=(16, H)).astype(np.float32)
HOPS = RNG.integers(0, 5, size=(B, L, L))
HOP_BIAS = RNG.normal(size=(H, 5)).astype(np.float32)
EDGES, STEPS = RNG.integers(0, 3, size=(B, L, L, 4)), RNG.integers(0, 5, size=(B, L, L))
EDGE_BIAS = RNG.normal(size=(H, 4, 3)).astype(np.float32)
Q_ROPE = RNG.normal(size=(B, H, L, 6)).astype(np.float32)
K_ROPE, K_ROPE_ONE = RNG.normal(size=(B, 2, L, 6)).astype(np.float32), RNG.normal(size=(B, L, 6)).astype(np.float32)


def per_head(values: Any, matrix: Dense) -> Dense:
    return np.asarray(values, np.float64)[:, None, None] * matrix


def clipped(table: Dense, first: int = 0) -> Dense:
    reach = table.shape[1] // 2
    return table[:, np.clip(KV - (first + Q), -reach, reach) + reach]


def t5_bucket(distance: int, buckets: int, last: int, bidirectional: bool) -> int:
    """distance: key minus query. The logarithm's steps are nudged off the integers, where float32 decides."""
    start = 0
    if bidirectional:
        buckets //= 2
        start = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return start + distance
    grown = math.log(distance / exact) / math.log(last / exact) * (buckets - exact)
    return start + min(exact + math.floor(grown + 1e-6), buckets - 1)


def t5(table: Dense, last: int, bidirectional: bool, first: int = 0) -> Dense:
    bucket = np.vectorize(lambda d: t5_bucket(int(d), len(table), last, bidirectional))(KV - (first + Q))
    return table[bucket].transpose(2, 0, 1)


def embedding_product(dims: int, first: int = 0) -> Dense:
    """p_m . p_n of sinusoidal embeddings, as Vaswani et al. define them."""
    angle = np.arange(first + L)[:, None] / 10000.0 ** (2 * np.arange(dims // 2) / dims)
    table = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    return table[first:] @ table[:L].T


def path_means() -> Dense:
    out = np.zeros((B, H, L, L))
    for b, h, i, j in np.ndindex(*out.shape):
        n = STEPS[b, i, j]
        if n:
            out[b, h, i, j] = np.mean([EDGE_BIAS[h, step, EDGES[b, i, j, step]] for step in range(n)])
    return out


@dataclass(frozen=True)
class Score:
    """A factory's score_mod and its definition: scores float64 [B, H, L, L] -> scores."""

    name: str
    make: Callable[[], flex.ScoreMod]
    dense: Callable[[Dense], Dense]

    def __str__(self) -> str:
        return self.name


PAPER_12 = [2 ** (-0.5 * 2 * (i + 1)) for i in range(8)] + [2 ** (-0.5 * (2 * i + 1)) for i in range(4)]

SCORES = [
    Score("alibi", lambda: mods.alibi(H), lambda s: s + per_head([0.25, 0.0625, 2**-6, 2**-8], KV - Q)),
    Score("alibi, learned", lambda: mods.alibi(TABLE[:, 0]), lambda s: s + per_head(TABLE[:, 0], KV - Q)),
    Score(
        "alibi, symmetric",
        lambda: mods.alibi(H, symmetric=True),
        lambda s: s - per_head([2**-2, 2**-4, 2**-6, 2**-8], abs(KV - Q)),
    ),
    Score("relative_bias", lambda: mods.relative_bias(TABLE), lambda s: s + clipped(TABLE)),
    Score("t5_bias", lambda: mods.t5_bias(BUCKETS, max_distance=16), lambda s: s + t5(BUCKETS, 16, True)),
    Score("t5_bias, decoder", lambda: mods.t5_bias(BUCKETS, False, 19), lambda s: s + t5(BUCKETS, 19, False)),
    Score(
        "sandwich",
        lambda: mods.sandwich(H, L, 16),
        lambda s: s + per_head([H / (8 * (h + 1)) for h in range(H)], embedding_product(16)),
    ),
    Score(
        "graphormer_spatial",
        lambda: mods.graphormer_spatial(mx.array(HOP_BIAS), HOPS),
        lambda s: s + HOP_BIAS[:, HOPS].swapaxes(0, 1),
    ),
    Score(
        "graphormer_spatial, one graph",
        lambda: mods.graphormer_spatial(HOP_BIAS, HOPS[0]),
        lambda s: s + HOP_BIAS[:, HOPS[0]],
    ),
    Score("graphormer_edge", lambda: mods.graphormer_edge(EDGE_BIAS, EDGES, STEPS), lambda s: s + path_means()),
    Score(
        "graphormer_edge, one graph",
        lambda: mods.graphormer_edge(EDGE_BIAS, EDGES[1], STEPS[1]),
        lambda s: s + path_means()[1],
    ),
    Score(
        "mla_rope",
        lambda: mods.mla_rope(Q_ROPE, K_ROPE_ONE, 0.5),
        lambda s: s + 0.5 * Q_ROPE.astype(float) @ K_ROPE_ONE[:, None].astype(float).swapaxes(2, 3),
    ),
    Score(
        "mla_rope, two heads",
        lambda: mods.mla_rope(mx.array(Q_ROPE), mx.array(K_ROPE)),
        lambda s: s + Q_ROPE.astype(float) @ K_ROPE.repeat(2, axis=1).astype(float).swapaxes(2, 3),
    ),
    Score(
        "alibi, offset",
        lambda: mods.alibi(H, symmetric=True, offset=7),
        lambda s: s - per_head([2**-2, 2**-4, 2**-6, 2**-8], abs(KV - (7 + Q))),
    ),
    Score(
        "alibi, offsets",
        lambda: mods.alibi(mx.array(TABLE[:, 0]), offset=STARTS),
        lambda s: s + np.stack([per_head(TABLE[:, 0], KV - (first + Q)) for first in LATER]),
    ),
    Score(
        "relative_bias, offsets",
        lambda: mods.relative_bias(TABLE, offset=STARTS),
        lambda s: s + np.stack([clipped(TABLE, first) for first in LATER]),
    ),
    Score("t5_bias, offset", lambda: mods.t5_bias(BUCKETS, True, 16, offset=7), lambda s: s + t5(BUCKETS, 16, True, 7)),
    Score(
        "sandwich, offset",
        lambda: mods.sandwich(H, L + 7, 16, offset=mx.array(7)),
        lambda s: s + per_head([H / (8 * (h + 1)) for h in range(H)], embedding_product(16, 7)),
    ),
    Score("softcap", lambda: mods.softcap(1.5), lambda s: 1.5 * np.tanh(s / 1.5)),
    Score("softcap, learned", lambda: mods.softcap(mx.array(2.0)), lambda s: 2 * np.tanh(s / 2)),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("backend", ["ops", "cpu"])
@pytest.mark.parametrize("case", SCORES, ids=str)
def test_score_mod_equals_its_definition(case: Score, backend: str) -> None:
    mod = case.make()
    assert isinstance(mod, flex.ScoreMod)
    q, k, v = tensors(B, H, L, L)
    out, lse = flex.flex_attention(q, k, v, score_mod=mod, return_lse=True, kernel_options={"BACKEND": backend})
    scores = case.dense(np.array(q, float) @ np.array(k, float).swapaxes(2, 3) / math.sqrt(8))
    expected = reference.attention(np.array(q), np.array(k), np.array(v), score_mod=lambda s, *at: scores[at])
    reference.assert_close(out, expected.out, 3e-5, 3e-5, "out")
    reference.assert_close(lse, expected.lse, 3e-5, 3e-5, "lse")


def test_alibi_slopes_of_the_paper() -> None:
    np.testing.assert_allclose(np.array(mods.alibi_slopes(8)), [2.0**-n for n in range(1, 9)])
    np.testing.assert_allclose(np.array(mods.alibi_slopes(12)), PAPER_12, rtol=1e-6)


def test_t5_buckets_of_its_published_size() -> None:
    bias = mods.t5_bias([[float(bucket)] for bucket in range(32)])
    decoder = mods.t5_bias([[float(bucket)] for bucket in range(32)], bidirectional=False)
    for kv_idx in range(0, 400, 3):
        assert float(bias(0.0, 0, 0, 200, kv_idx)) == t5_bucket(kv_idx - 200, 32, 128, True)
        assert float(decoder(0.0, 0, 0, 200, kv_idx)) == t5_bucket(kv_idx - 200, 32, 128, False)


def test_orders_are_permutations_of_the_definition() -> None:
    np.testing.assert_array_equal(np.array(mods.tiled_order((4, 6), (2, 3))), tile_major((4, 6), (2, 3)))
    np.testing.assert_array_equal(np.array(mods.tiled_order((4, 2, 6), (2, 1, 3))), tile_major((4, 2, 6), (2, 1, 3)))
    np.testing.assert_array_equal(np.array(mods.morton_order(8)), z_curve(np.arange(64).reshape(8, 8)))
    x = mx.arange(24)
    order = mods.tiled_order((4, 6), (2, 3))
    np.testing.assert_array_equal(np.array(x[order][mx.argsort(order)]), np.arange(24))


# ---- another function in softmax's place -----------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[Dense], Dense]] = {
    "relu": lambda s: np.maximum(s, 0),
    "squared_relu": lambda s: np.maximum(s, 0) ** 2,
    "sigmoid": lambda s: 1 / (1 + np.exp(-s)),
    "gelu": lambda s: s * np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))(s),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_is_undone_to_a_weighted_sum(name: str, causal: bool) -> None:
    offset = 1.0 if name == "gelu" else 0.0
    q, k, v = tensors(B, H, L, L)
    v_sum = (mx.cumsum(v, axis=2) if causal else v.sum(axis=2, keepdims=True)) if offset else None
    mod = mods.activation(name, offset)
    mask_mod, options = mods.causal if causal else None, {"BACKEND": "ops" if causal else "cpu"}
    out, lse = flex.flex_attention(q, k, v, score_mod=mod, block_mask=mask_mod, return_lse=True, kernel_options=options)
    weights = FUNCTIONS[name](np.array(q, float) @ np.array(k, float).swapaxes(2, 3) / math.sqrt(8))
    expected = (np.tril(weights) if causal else weights) @ np.array(v, float)
    np.testing.assert_allclose(np.array(mods.undo_softmax(out, lse, offset, v_sum)), expected, atol=5e-5)


def test_activation_takes_a_function_of_the_user() -> None:
    q, k, v = tensors(1, 1, 6, 6)
    mod = mods.activation(lambda score: 1 + abs(score))
    out, lse = flex.flex_attention(q, k, v, score_mod=mod, return_lse=True)
    weights = 1 + abs(np.array(q, float) @ np.array(k, float).swapaxes(2, 3) / math.sqrt(8))
    np.testing.assert_allclose(np.array(mods.undo_softmax(out, lse)), weights @ np.array(v, float), atol=1e-5)


def test_activation_of_a_row_without_positive_scores_is_zero() -> None:
    q, k, v = mx.ones((1, 1, 2, 4)), -mx.ones((1, 1, 3, 4)), mx.ones((1, 1, 3, 4))
    out, lse = flex.flex_attention(q, k, v, score_mod=mods.activation("relu"), return_lse=True)
    assert not np.array(mods.undo_softmax(out, lse)).any()


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_gradient_reaches_learnable_tables() -> None:
    q, k, v = tensors(B, H, L, L)

    def loss(table: mx.array, slopes: mx.array) -> mx.array:
        options = {"BACKEND": "ops"}
        near = flex.flex_attention(q, k, v, score_mod=mods.t5_bias(table, max_distance=16), kernel_options=options)
        far = flex.flex_attention(q, k, v, score_mod=mods.alibi(slopes), kernel_options=options)
        return (near * near).sum() + (far * far).sum()

    values, step = (mx.array(BUCKETS), mods.alibi_slopes(H)), 1e-2
    for argument, gradient in enumerate(mx.grad(loss, (0, 1))(*values)):
        for at in ((1, 2), (11, 0)) if argument == 0 else ((1,), (3,)):
            nudge = mx.zeros_like(values[argument])
            nudge[at] = step
            up, down = ([v + s * nudge if i == argument else v for i, v in enumerate(values)] for s in (1, -1))
            slope = (loss(*up) - loss(*down)).item() / (2 * step)
            assert gradient[at].item() == pytest.approx(slope, rel=3e-2, abs=2e-2)


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mods.__all__)
def test_documented(name: str) -> None:
    text = getattr(mods, name).__doc__
    assert "Example:" in text and ">>> " in text
    assert "Source: " in text
    assert text.split("\n")[0].endswith((".", "]"))


def test_every_public_name_is_tested() -> None:
    tested = {case.name.split()[0].rstrip(",") for case in (*MASKS, *SCORES)}
    functions = {"activation", "alibi_slopes", "document_ids", "morton_order", "tiled_order"}
    assert set(mods.__all__) == tested | functions | {"undo_softmax", "dropout_output", "uniform"}
    assert flex.mods is mods and flex.mods.__all__ == sorted(mods.__all__)


PLACELESS = {"padding", "dropout", "softcap", "activation", "video_heads"}  # no position of the query, or any other's
PLACELESS |= {"block_diffusion", "tree_ancestor", "natten", "tiled_natten", "morton_natten", "sliding_tile"}  # a whole
PLACELESS |= {"graphormer_spatial", "graphormer_edge", "mla_rope", "spatial_head", "temporal_head"}  # set of queries


def test_what_asks_where_a_query_is_takes_an_offset() -> None:
    signatures = {name: inspect.signature(getattr(mods, name)) for name in mods.__all__}
    factories = {name for name, made in signatures.items() if made.return_annotation in ("MaskMod", "ScoreMod")}
    takers = {name for name in factories if "offset: 'int | mx.array | None'" in str(signatures[name])}
    assert factories - takers == PLACELESS
    offset_scores = [case for case in SCORES if "offset" in case.name]
    assert {case.name.split()[0].rstrip(",") for case in (*OFFSET_MASKS, *offset_scores)} == takers | {"causal"}


@pytest.mark.parametrize(
    "offset", [200, mx.array(200), mx.array([200, 1000]), mx.array([200, 1000], mx.int64)], ids=str
)
def test_tiles_are_decided_from_bounds_at_an_offset(offset: Any) -> None:
    """Without a look at a pair: rows 256 to 319 of each batch entry, by tiles of 64 keys."""
    bound = mods.sliding_window(128, offset=offset).bind()
    assert all(value == 200 or value == 128 for value in bound.numbers)
    starts = [200, 200] if isinstance(offset, int) or not offset.ndim else offset.tolist()
    tiles = np.arange(0, 2048, 64)
    for b, start in enumerate(starts):
        ranges = {"b": (b, b), "h": (0, 0), "q_idx": (256, 319), "kv_idx": (tiles, tiles + 63)}
        full, live = bounds_of(bound.trace.expr)(ranges, bound.numbers, [Extremes(np.array(a)) for a in bound.arrays])
        kept = band(2048, 127, 0)[start + 256 : start + 320].reshape(64, -1, 64)
        assert np.broadcast_to(live, tiles.shape).tolist() == kept.any((0, 2)).tolist()
        assert not (np.broadcast_to(full, tiles.shape) & ~kept.all((0, 2))).any()


def test_what_is_written_to_an_offset_is_read_at_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_BACKEND", "cpu")
    (q, k, v), offset = tensors(2, 2, 3, 24), mx.array([4, 11])
    masked = mods.causal(offset=offset) & mods.sliding_window(8, offset=offset)
    prepared = flex.create_block_mask(masked, 2, None, 3, 24, BLOCK_SIZE=2)
    for starts in ([4, 11], [20, 0], [21, 6]):
        offset[:] = mx.array(starts)
        kept = over_batch(*(band(24, 7, 0)[start : start + 3] for start in starts))
        expected = reference.attention(
            np.array(q),
            np.array(k),
            np.array(v),
            mask_mod=lambda *at, kept=kept: np.broadcast_to(kept, (2, 2, 3, 24))[at],
        )
        for block_mask in (masked, prepared):
            reference.assert_close(flex.flex_attention(q, k, v, block_mask=block_mask), expected.out, 2e-5, 2e-5, "out")


def test_ids_that_end_before_the_last_query_are_too_short() -> None:
    (q, k, _), ids = tensors(1, 1, 9, 24), mods.document(IDS[0], offset=16)
    with pytest.raises(ValueError, match=r"ids has 24 entries .*25"):
        flex.flex_attention(q, k, k, block_mask=ids)


def test_document_ids() -> None:
    assert mods.document_ids(OFFSETS).tolist() == [0] * 5 + [1] + [3] * 11 + [4] * 7


SAME_KERNEL: list[tuple[Callable[..., flex.MaskMod | flex.ScoreMod], list[tuple[Any, ...]]]] = [
    (mods.sliding_window, [(7,), (1,), (4096,)]),
    (mods.bidirectional_window, [(0,), (64,)]),
    (mods.dilated_window, [(8, 2), (64, 1)]),
    (mods.attention_sinks, [(0, 8), (4, 1)]),
    (mods.prefix_lm, [(0,), (1000,)]),
    (mods.block_diffusion, [(64, 1), (100, 16)]),
    (mods.tree_ancestor, [([-1, 0], 0), ([-1, 0, 1], 7)]),
    (mods.causal_document, [([0, 4],), ([0, 1, 9],)]),
    (mods.natten, [((8, 8), (3, 3)), ((16, 1), (4, 1))]),
    (mods.tiled_natten, [((8, 8), (3, 3), (2, 2)), ((16, 16), (5, 5), (4, 4))]),
    (mods.morton_natten, [(4, (3, 3)), (8, (5, 1))]),
    (mods.sliding_tile, [((8, 8), (4, 4), (2, 2), 0), ((4, 4), (4, 4), (1, 1), 5)]),
    (mods.spatial_head, [(4, 1, 0), (16, 2, 7, True)]),
    (mods.temporal_head, [(4, 1, 0), (16, 2, 7)]),
    (mods.dropout, [(0.1, 0), (0.5, -7)]),
    (lambda n: mods.causal(offset=n), [(0,), (1,), (-4096,)]),
    (lambda w, n: mods.sliding_window(w, offset=n), [(7, 0), (1024, 131_072)]),
    (lambda n: mods.alibi(4, offset=n), [(0,), (99,)]),
    (lambda n: mods.t5_bias(BUCKETS, offset=n), [(0,), (99,)]),
    (mods.alibi, [(4,), (12,)]),
    (mods.softcap, [(30.0,), (50.0,)]),
    (mods.sandwich, [(4, 64), (8, 99, 32)]),
]


@pytest.mark.parametrize(("factory", "settings"), SAME_KERNEL, ids=lambda x: getattr(x, "__name__", ""))
def test_other_sizes_compile_nothing(factory: Any, settings: list[tuple[Any, ...]]) -> None:
    assert len({factory(*setting).expr for setting in settings}) == 1


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: mods.sliding_window(0), "window is 0; expected a whole number of at least 1"),
    (lambda: mods.sliding_window(True), "window is True"),
    (lambda: mods.sliding_window(2.5), "window is 2.5"),
    (lambda: mods.sliding_window(2**31), "fits int32"),
    (lambda: mods.bidirectional_window(-1), "radius is -1; expected a whole number of at least 0"),
    (lambda: mods.dilated_window(4, 0), "dilation is 0"),
    (lambda: mods.global_window([1, 0], 2), r"is_global is .* of shape \(2,\); expected bools of shape \[length\]"),
    (lambda: mods.attention_sinks(-1, 2), "sinks is -1"),
    (lambda: mods.padding([0.5]), r"lengths is float64 of shape \(1,\); expected integers of shape \[B\]"),
    (lambda: mods.padding([2**40]), "fit int32"),
    (lambda: mods.prefix_lm([[1]]), "prefix is int64 of shape"),
    (lambda: mods.block_diffusion(8, 0), "block is 0"),
    (
        lambda: mods.tree_ancestor([-1, 2, 0]),
        r"parents\[1\] is 2; expected -1 for a root, or an earlier token \(0 to 0\)",
    ),
    (lambda: mods.tree_ancestor([]), "parents"),
    (lambda: mods.document(), "document takes ids"),
    (lambda: mods.document([0, 1], offsets=[0, 2]), "not both"),
    (lambda: mods.document(mx.array([0.0, 1.0])), "ids is mlx.core.float32 of shape"),
    (lambda: mods.causal_document([1, 4]), r"offsets is \[1, 4\]; expected running totals"),
    (lambda: mods.causal_document([0, 4, 3]), "such as"),
    (lambda: mods.shared_prefix([0, 4, 6], [0]), "expected 2 numbers of documents, 0 to 1"),
    (lambda: mods.shared_prefix([0, 4, 6], [0, 2]), "prefix_of"),
    (lambda: mods.batchify(mods.causal, 0), "length is 0"),
    (lambda: mods.natten((4, 6), (5, 3)), r"kernel \(5, 3\) is larger than canvas \(4, 6\)"),
    (lambda: mods.natten((4, 6), (3,)), r"kernel is \(3,\); expected 2 sizes"),
    (lambda: mods.natten(16, 3), "canvas is 16; expected 1 or 2 or 3 sizes"),  # type: ignore[arg-type]
    (lambda: mods.tiled_natten((4, 6), (3, 3), (3, 3)), r"tile \(3, 3\) does not divide canvas"),
    (lambda: mods.sliding_tile((4, 6), (3, 3), (2, 3)), r"tile \(2, 3\) does not divide kernel"),
    (lambda: mods.morton_natten(6, (3, 3)), "power of two"),
    (lambda: mods.spatial_head(4, 0), "frames is 0"),
    (lambda: mods.temporal_head(0), "frame is 0"),
    (lambda: mods.video_heads([0, 1], mods.causal, mods.causal), "is_temporal"),
    (lambda: mods.vision_cross_attention([[0, 1, 2]], 4), r"expected \[images, 2\]"),
    (lambda: mods.alibi(0), "heads is 0"),
    (lambda: mods.causal(offset=2**31), "offset is 2147483648; expected a whole number that fits int32"),
    (lambda: mods.causal(offset=True), "offset is True; expected a whole number, or integers as an mx.array of shape"),
    (lambda: mods.sliding_window(4, offset=1.5), "offset is 1.5; expected a whole number, or"),  # type: ignore[arg-type]
    (
        lambda: mods.alibi(4, offset=mx.array(1.0)),
        r"offset is .*float32 of shape \(\); expected integers of shape \[\]",
    ),
    (lambda: mods.prefix_lm(3, offset=mx.array([[1]])), r"of shape \(1, 1\); expected integers of shape \[\] or \[B\]"),
    (lambda: mods.document(offsets=[0, 4], offset=[2**31]), "expected numbers that fit int32"),  # type: ignore[arg-type]
    (lambda: mods.dropout(1.0, 0), r"rate is 1.0; expected a number in \[0, 1\)"),
    (lambda: mods.dropout(0.5, 2**31), "seed is 2147483648; expected a whole number that fits int32"),
    (lambda: mods.dropout(0.5, 0.5), "seed is 0.5"),
    (
        lambda: mods.dropout_output(mx.ones((2, 3)), mx.ones((2,)), mx.ones((3,)), 0.5),
        "expected the latter two of out's",
    ),
    (lambda: mods.dropout_output(mx.ones((2, 3)), mx.ones((2,)), mx.ones((2,)), -0.5), "rate is -0.5"),
    (lambda: mods.alibi(mx.array([1, 2])), "slopes is mlx.core.int32"),
    (lambda: mods.relative_bias(np.zeros((2, 4))), "odd number of columns"),
    (lambda: mods.t5_bias(np.zeros((2, 4))), "at least 4 buckets"),
    (lambda: mods.t5_bias(np.zeros((32, 4)), max_distance=8), "larger max_distance"),
    (lambda: mods.sandwich(4, 16, 7), "dims is 7"),
    (lambda: mods.graphormer_spatial(np.zeros((2, 3)), [0]), "distances is"),
    (
        lambda: mods.graphormer_edge(np.zeros((2, 3, 1)), np.zeros((4, 4, 2), int), np.zeros((4, 4), int)),
        "edges of steps",
    ),
    (lambda: mods.mla_rope(np.zeros((1, 3, 4, 2)), np.zeros((1, 2, 4, 2))), "query_heads a multiple of rope_heads"),
    (lambda: mods.softcap(0), "cap is 0; expected a positive number"),
    (lambda: mods.softcap(mx.array([1.0])), "cap is an mx.array of float32 and shape .*; expected a number"),  # type: ignore[arg-type]
    (lambda: mods.activation("tanh"), "there is no activation 'tanh'; take one of relu, squared_relu, sigmoid, gelu"),
    (lambda: mods.activation("gelu", -1.0), "offset is -1.0"),
    (lambda: mods.undo_softmax(mx.ones((1, 1)), mx.ones((1,)), offset=1.0), "needs value_sum"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments_name_the_remedy(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("combine", [lambda m: mods.batchify(m, 4), lambda m: mods.per_document(m, [0, 4])])
def test_masks_of_masks_take_mask_mods(combine: Any) -> None:
    with pytest.raises(TypeError, match="takes a mask_mod"):
        combine(mods.softcap(2.0))
    assert combine(lambda b, h, q_idx, kv_idx: kv_idx == 0)(0, 0, 3, 0)
