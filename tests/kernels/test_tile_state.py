"""tile_state in the cpu kernel: a bare mask_mod visits the tiles that its BlockMask names, and gives the same result.

Counts are of tiles of one row group and KV_TILE keys, so a BlockMask with blocks of that size is what they are held to.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import reference
import zoo
from calls import attention_call, attention_spec, formulas
from random_masks import random_case

import flextrace as flex
from flextrace import tracer
from flextrace.kernels import backend_for
from flextrace.kernels.call import Mods
from flextrace.kernels.cpu import generate
from flextrace.kernels.cpu.launch import captured
from flextrace.kernels.spec import shift_slots
from flextrace.kernels.template.assemble import assemble
from flextrace.kernels.toolchain import find_compiler
from flextrace.tracer import Bound, Trace
from flextrace.tracer.captures.guards import ArrayCapture, NumberCapture
from flextrace.tracer.expr.node import Expr, H, apply, const, walk

KV_TILE = 128
Array = np.ndarray


def tensors(batch: int, heads: int, q_len: int, kv_len: int, dim: int = 16) -> tuple[mx.array, mx.array, mx.array]:
    q = mx.random.normal((batch, heads, q_len, dim), key=mx.random.key(1))
    k, v = (mx.random.normal((batch, heads, kv_len, dim), key=mx.random.key(i)) for i in (2, 3))
    mx.eval(q, k, v)
    return q, k, v


def dense_attention(q: Any, k: Any, v: Any, keep: Array) -> Array:
    """float64; keep: bool, broadcasts to the scores. Rows that keep nothing give 0."""
    q, k, v = (np.array(x).astype(np.float64) for x in (q, k, v))
    scores = np.where(keep, q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1]), -np.inf)
    highest = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(highest), 0.0, highest))
    total = weights.sum(axis=-1, keepdims=True)
    return (weights / np.where(total > 0, total, 1.0)) @ v


class Counts(NamedTuple):
    skipped: int
    masked: int
    unmasked: int
    evaluated: int

    @property
    def visited(self) -> int:
        return self.masked + self.unmasked


def run(bound: Bound, q: Any, k: Any, v: Any, blocks: Any = None, threads: int = 1) -> tuple[mx.array, Counts]:
    kernel: Any = backend_for("cpu").load(attention_spec(None, bound.trace))
    counts = np.zeros(4, np.int64)
    scale = q.shape[-1] ** -0.5
    result = kernel.run(attention_call(q, k, v, scale, None, bound, blocks, threads=threads), counts)
    return result.out, Counts(*counts.tolist())


def row_group() -> int:
    """Rows that the kernel of this machine computes together."""
    q, k, v = tensors(1, 1, 120, KV_TILE)
    counts = run(flex.mask_mod(lambda b, h, q_idx, kv_idx: True).bind(), q, k, v)[1]
    return 120 // counts.unmasked


def block_counts(mask: Any, batch: int, heads: int, q_len: int, kv_len: int) -> tuple[int, int, int]:
    """Empty, partial and full blocks of row groups and tiles of keys."""
    blocks = flex.create_block_mask(mask, batch, heads, q_len, kv_len, (row_group(), KV_TILE)).blocks
    empty, partial, full = np.bincount(blocks.states().reshape(-1), minlength=3).tolist()
    return empty, partial, full


# --- the zoo --------------------------------------------------------------------------------------------------------

# Bounds decide every block of the others that is empty or full.
COARSE = {"dilated_window", "random_table", "tree_ancestor", "natten_2d", "tiled_natten", "sliding_tile_2d"}
COARSE |= {"video_heads", "shared_prefix", "block_diffusion"}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("entry", zoo.MASK_MODS, ids=str)
def test_the_tiles_of_a_mask_mod_are_those_of_its_block_mask(entry: zoo.Entry) -> None:
    shape = (2, 2, 304, 432)
    mask = flex.mask_mod(entry.make(*shape, np.random.default_rng(0)))
    q, k, v = tensors(*shape)
    empty, partial, full = block_counts(mask, *shape)
    counts = run(mask.bind(), q, k, v)[1]
    assert (counts.skipped, counts.visited) == (empty, partial + full)
    assert counts.unmasked >= full  # also where only the first or last registers of a tile are live, and those fully


@pytest.mark.sampled(3)
@pytest.mark.parametrize("entry", zoo.MASK_MODS, ids=str)
def test_only_partial_tiles_are_evaluated(entry: zoo.Entry) -> None:
    shape = (1, 1, 600, 640)
    mask = flex.mask_mod(entry.make(*shape, np.random.default_rng(0)))
    empty, partial, full = block_counts(mask, *shape)
    evaluated = run(mask.bind(), *tensors(*shape))[1].evaluated
    if entry.name in COARSE:
        assert partial <= evaluated <= empty + partial + full
    else:
        assert evaluated == partial


@pytest.mark.sampled(4)
@pytest.mark.parametrize("entry", zoo.MASK_MODS, ids=str)
def test_mask_mod_block_mask_and_reference_agree(entry: zoo.Entry) -> None:
    shape = (1, 2, 300, 300)
    mask = flex.mask_mod(entry.make(*shape, np.random.default_rng(0)))
    plain = entry.make(*shape, np.random.default_rng(0), reference.array)
    q, k, v = tensors(*shape)
    expected = dense_attention(q, k, v, reference.apply_mask_mod(plain, shape))
    out = run(mask.bind(), q, k, v)[0]
    reference.assert_close(out, expected, *reference.tolerance("float32")[:2], entry.name)
    for size in (128, (128, 48), (40, 320)):  # runs that end inside tiles of keys, too
        blocks = flex.create_block_mask(mask, 1, 2, 300, 300, size).blocks
        assert mx.array_equal(run(mask.bind(), q, k, v, blocks)[0], out), size


def test_causal_evaluates_the_diagonal_alone() -> None:
    def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return q_idx >= kv_idx

    n = 3840
    q, k, v = tensors(1, 1, n, n)
    groups, tiles = n // row_group(), n // KV_TILE
    counts = run(flex.mask_mod(causal).bind(), q, k, v)[1]
    assert groups <= counts.evaluated <= groups + tiles
    assert counts.evaluated == block_counts(causal, 1, 1, n, n)[1]
    assert counts.skipped + counts.visited == groups * tiles
    blocks = flex.create_block_mask(causal, None, None, n, n, (480, 128)).blocks  # whole query tiles of the kernel
    assert run(flex.mask_mod(causal).bind(), q, k, v, blocks)[1] == counts


def test_bounds_end_where_the_keys_do() -> None:
    counts = run(flex.mask_mod(lambda b, h, q_idx, kv_idx: kv_idx < 70).bind(), *tensors(1, 1, 40, 70))[1]
    assert counts.evaluated == 0 and counts.visited > 0


def test_no_key_behind_the_last_one_is_asked_about() -> None:
    """An element that no int32 holds is an error where it is read: here it belongs to key 75 of 70."""
    table = np.where(np.arange(96) == 75, 2**32 - 1, np.arange(96) % 3).astype(np.uint32)
    q, k, v = tensors(1, 1, 40, 70)
    mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: (kv_idx + q_idx) % 5 < table[kv_idx])
    expected = dense_attention(q, k, v, (np.arange(70) + np.arange(40)[:, None]) % 5 < table[:70])
    reference.assert_close(run(mask.bind(), q, k, v)[0], expected, *reference.tolerance("float32")[:2], "70 keys")


# --- captured arrays ------------------------------------------------------------------------------------------------


def documents_of(lengths: list[int]) -> Array:
    return np.repeat(np.arange(len(lengths)), lengths)


LENGTHS = [1, 700, 64, 63, 65, 1500, 127, 130, 2, 348]  # 3000 tokens


@pytest.mark.sampled(4)
@pytest.mark.parametrize("element", ["int32", "uint8", "int64", "uint32", "float32", "float16", "bfloat16"])
def test_documents_are_told_apart_exactly(element: str) -> None:
    documents = documents_of(LENGTHS)
    n = len(documents)
    ids = mx.array(documents).astype(getattr(mx, element))
    mx.eval(ids)

    def same(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return ids[q_idx] == ids[kv_idx]

    q, k, v = tensors(1, 1, n, n)
    out, counts = run(flex.mask_mod(same).bind(), q, k, v)
    keep = documents[:, None] == documents
    reference.assert_close(out, dense_attention(q, k, v, keep), 2e-5, 2e-5, element)
    empty, partial, full = block_counts(same, 1, 1, n, n)
    assert counts.skipped == empty
    assert counts.evaluated == partial
    assert full > 0


def test_rows_of_arrays_and_bools_by_batch_and_head() -> None:
    n = 1400
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(0, 5, size=(n, 2)), axis=0)  # the axis of tokens is not the last one
    dense = np.repeat(rng.random((2, n // 200)) < 0.6, 200, axis=1)
    table, live = mx.array(ids.astype(np.int16)), np.ascontiguousarray(dense[::-1])[::-1]  # a negative stride

    def same(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return table[q_idx, b] == table[kv_idx, b]

    def alive(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return live[h, kv_idx]

    def both(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return table[q_idx, b] == table[kv_idx, b] and live[h, kv_idx]

    is_same = (ids.T[:, :, None] == ids.T[:, None, :])[:, None]
    cases = ((same, 2, 1, is_same), (alive, 1, 2, dense[:, None]), (both, 2, 2, is_same & dense[:, None]))
    for mask, batch, heads, keep in cases:
        q, k, v = tensors(batch, heads, n, n)
        out, counts = run(flex.mask_mod(mask).bind(), q, k, v)
        reference.assert_close(out, dense_attention(q, k, v, keep), 2e-5, 2e-5, mask.__name__)
        empty, partial, full = block_counts(mask, batch, heads, n, n)
        assert (counts.skipped, counts.visited) == (empty, partial + full)
        # Two partial halves of `both` may have nothing in common; that shows only when they are evaluated.
        assert partial <= counts.evaluated <= partial * (1.2 if mask is both else 1)


def test_threads_and_a_score_mod_with_captures_change_nothing() -> None:
    n = 3000
    ids, bias = mx.array(documents_of(LENGTHS)), mx.random.normal((n,), key=mx.random.key(4))
    q, k, v = tensors(1, 2, n, n)

    def same(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return ids[q_idx] == ids[kv_idx]

    def biased(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + bias[kv_idx]

    blocks = flex.create_block_mask(same, None, None, n, n)
    outs = [
        flex.flex_attention(q, k, v, biased, mask, kernel_options={"NUM_THREADS": threads})
        for mask in (same, blocks)
        for threads in (1, 4)
    ]
    for out in outs[1:]:
        assert mx.array_equal(out, outs[0])


def test_an_integer_outside_int32_is_an_error_where_the_mask_needs_it() -> None:
    n = 1024
    ids = np.zeros(n, np.int64)
    q, k, v = tensors(1, 1, n, n)

    def same(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return ids[q_idx] == ids[kv_idx]

    def same_before_900(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx < 896 and ids[kv_idx] == 0

    assert mx.all(mx.isfinite(flex.flex_attention(q, k, v, block_mask=same)))
    ids[1000] = 2**40
    with pytest.raises(OverflowError, match=r"\(ids\) holds a value outside int32.*renumber"):
        flex.flex_attention(q, k, v, block_mask=same)
    out = flex.flex_attention(q, k, v, block_mask=same_before_900)  # its bounds rule key 1000 out by the first half
    reference.assert_close(out, dense_attention(q, k, v, np.arange(n) < 896), 2e-5, 2e-5, "before 900")


ELEMENTS = ("bool", "int8", "uint16", "int32", "uint32", "int64", "float16", "float32", "float64")
RANGES = """
struct Call {
  const Array* arrays;
  const Number* numbers;
  const int64_t* ranges;  // [count][3]: the place of the first axis, first and last of the second
  float* out;             // [arrays][count][2]
  int64_t count;
};
inline void store(float* out, bounds::Range r) { out[0] = r.lo, out[1] = r.hi; }
inline void store(float* out, bounds::Truth t) { out[0] = t.must, out[1] = t.may; }
inline void store(float* out, bounds::Interval x) { out[0] = x.known ? x.lo : NAN, out[1] = x.known ? x.hi : NAN; }
extern "C" __attribute__((visibility("default"))) int flextrace_stage(const Call* call) {
  int32_t overflow = 0;
  Inputs in = {call->arrays, call->numbers, &overflow, nullptr};
  ArrayExtremes extremes;
  extremes.plan(in.arrays, 1 << 20);
  char* memory = (char*)malloc(extremes.bytes);
  in.extremes = extremes.in(memory);
  for (int64_t job = 0; job < extremes.jobs; job++) extremes.run_job(in, job);
  Mods::ranged_arrays([&](auto type, int slot, int) {
    using T = typename decltype(type)::T;
    for (int64_t i = 0; i < call->count; i++) {
      const int64_t* r = call->ranges + 3 * i;
      store(call->out + (slot * call->count + i) * 2,
            bounds::load<T>(in, slot, bounds::range(r[0], r[0]), bounds::range(r[1], r[2])));
    }
  });
  free(memory);
  return overflow ? -1 : extremes.jobs;
}
"""


def test_extremes_of_any_range_are_exact(tmp_path: Path) -> None:
    """Blocks, superblocks (4096 elements) and edges, of every type of element and of strided views."""
    n, count = 70000, 300
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(2, 3, n)) * 3).cumsum(axis=-1)
    arrays = []
    for element in ELEMENTS:
        made = (values > 0) if element == "bool" else values.clip(0 if "u" in element else -120, 120).astype(element)
        arrays.append(np.ascontiguousarray(made)[:, 1, ::-1])
    arrays[-2][0, 5000] = np.nan
    a0, a1, a2, a3, a4, a5, a6, a7, a8 = arrays

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        ints = a1[b, kv_idx] + a2[b, kv_idx] + a3[b, kv_idx] + a4[b, kv_idx] + a5[b, kv_idx]
        return a0[b, kv_idx] and ints > 3 and a6[b, kv_idx] < a7[b, kv_idx] < a8[b, kv_idx]

    bound = flex.mask_mod(mask).bind()
    arrays = [np.asarray(array) for array in bound.arrays]  # by slot
    header = generate.mod_header(formulas(None, bound.trace))
    text = "#include <stdlib.h>\n#include <math.h>\n" + assemble(
        Path(generate.__file__).parent, "mod/extremes.h", {"mod/mod.h": header}
    )
    (tmp_path / "ranges.cpp").write_text(text + RANGES, encoding="ascii")
    compiler = find_compiler()
    assert compiler is not None
    compiler.build(tmp_path / "ranges.cpp", tmp_path / "ranges.so")
    first = rng.integers(0, n, size=count)
    last = np.minimum(n - 1, first + rng.choice([0, 10, 63, 64, 130, 700, 4096, 9000, 70000], size=count))
    ranges = np.stack([rng.integers(0, 2, size=count), first, last], axis=1).astype(np.int64)
    out = np.zeros((len(arrays), count, 2), np.float32)
    described, _, _kept = captured(Mods(mask=bound))
    numbers = (described, b"", ranges.ctypes.data, out.ctypes.data, count)
    call = (ctypes.c_uint64 * 5)(ctypes.cast(described, ctypes.c_void_p).value, 0, *numbers[2:])
    assert ctypes.CDLL(str(tmp_path / "ranges.so")).flextrace_stage(call) == 3 * len(arrays)  # jobs
    for array, got in zip(arrays, out, strict=True):
        for (row, lo, hi), (least, most) in zip(ranges, got, strict=True):
            part = array[row, lo : hi + 1].astype(np.float32)
            np.testing.assert_array_equal([least, most], [part.min(), part.max()], err_msg=f"{array.dtype} {lo} {hi}")


# --- made masks -----------------------------------------------------------------------------------------------------


def made_mask(seed: int, heads: int) -> Bound:
    """A random mask per head, in one kernel. exp, log and sqrt are left out: their last bits differ from numpy's."""
    rng = np.random.default_rng(seed)
    expr: Expr = const(True)
    arrays: list[Array] = []
    numbers: list[Any] = []
    for head in range(heads):
        case = random_case(rng)
        while {node.op for node in walk(case.expr)} & {"exp", "log", "sqrt"}:
            case = random_case(rng)
        expr = apply("where", apply("eq", H, const(head)), shift_slots(case.expr, len(arrays), len(numbers)), expr)
        arrays += case.arrays
        numbers += case.numbers
    kinds: dict[type, Any] = {bool: "bool", int: "int", float: "float"}
    trace = Trace(
        "mask_mod",
        "made",
        expr,
        tuple(ArrayCapture(f"a{i}", str(array.dtype), array.ndim) for i, array in enumerate(arrays)),
        tuple(NumberCapture(f"n{i}", kinds[type(number)]) for i, number in enumerate(numbers)),
        None,  # type: ignore[arg-type]
        False,
    )
    return Bound(trace, list(arrays), numbers)


def check_made_mask(seed: int) -> None:
    shape = (2, 10, 260, 390)
    bound = made_mask(seed, shape[1])
    q, k, v = tensors(*shape)
    places = [np.arange(n).reshape([-1 if i == axis else 1 for i in range(4)]) for axis, n in enumerate(shape)]
    indices = dict(zip(("b", "h", "q_idx", "kv_idx"), places, strict=True))
    keep = tracer.evaluate(bound.trace.expr, indices, numbers=bound.numbers, arrays=bound.arrays)
    out, counts = run(bound, q, k, v)
    reference.assert_close(out, dense_attention(q, k, v, keep), 2e-5, 2e-5, f"seed {seed}")
    group = row_group()
    padded = np.zeros((*shape[:2], -(-shape[2] // group) * group, -(-shape[3] // KV_TILE) * KV_TILE), bool)
    padded[:, :, : shape[2], : shape[3]] = keep
    tiles = padded.reshape(*shape[:2], padded.shape[2] // group, group, -1, KV_TILE).any(axis=(3, 5))
    assert counts.visited == tiles.sum()
    assert counts.skipped == tiles.size - tiles.sum()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(4))
def test_made_masks(seed: int) -> None:
    check_made_mask(seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
def test_made_masks_long(seed: int) -> None:
    check_made_mask(seed)
