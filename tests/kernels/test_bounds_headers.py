"""bounds.h of the kernels, on random masks: sound at every position, and the same bounds as tracer.bounds gives.

One library (or one Metal kernel in the simulator) holds the emitted bounds of many expressions at once.
"""

from __future__ import annotations

import ctypes
import math
import struct
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import zoo
from apparatus import clang_check
from random_masks import random_case

import flextrace as flex
from flextrace import tracer
from flextrace.kernels.cpu import generate as cpu
from flextrace.kernels.cpu.launch import ARRAY
from flextrace.kernels.metal import generate as metal
from flextrace.kernels.metal.mod.captures import msl_type
from flextrace.kernels.spec import shift_slots
from flextrace.kernels.template.assemble import assemble
from flextrace.kernels.toolchain import find_compiler
from flextrace.tracer.bounds.tiles import tile_bounds
from flextrace.tracer.emit.tile_state import CPP_RANGES, METAL_RANGES, range_lines, tile_state_body
from flextrace.tracer.expr.node import KV_IDX, OPS, Q_IDX, Expr, apply, const, leaves

TILES = 24
PACKED = {float: struct.Struct("=f"), int: struct.Struct("=i"), bool: struct.Struct("=i")}


class Batch(NamedTuple):
    """Expressions with their captures side by side, and for each the indices of its tiles and their positions."""

    exprs: list[Expr]
    numbers: list[Any]
    arrays: list[np.ndarray]
    tiles: np.ndarray  # int32 [exprs, TILES, 6]: batch, head, first and last row, first and last key
    positions: list[dict[str, np.ndarray]]


def batch(seeds: range, most_arrays: int) -> Batch:
    result = Batch([], [], [], np.zeros((len(seeds), TILES, 6), np.int32), [])
    for i, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        case = random_case(rng, "bool" if seed % 3 else "int")
        while len(case.arrays) > most_arrays:
            case = random_case(rng, "bool" if seed % 3 else "int")
        result.exprs.append(shift_slots(case.expr, len(result.arrays), len(result.numbers)))
        result.numbers.extend(case.numbers)
        result.arrays.extend(case.arrays)
        rows, columns = rng.choice([1, 2, 5, 8], size=2)
        limit = int(rng.choice([30, 200, 5000, 2**31 - 20]))
        q, kv = rng.integers(max(0, limit - 3000), limit, size=(2, TILES))
        h, b = rng.integers(0, 20, size=(2, TILES))
        result.tiles[i] = np.stack([b, h, q, q + rows - 1, kv, kv + columns - 1], axis=1)
        positions = {"b": b[:, None, None], "h": h[:, None, None]}
        positions["q_idx"] = q[:, None, None] + np.arange(rows)[:, None]
        positions["kv_idx"] = kv[:, None, None] + np.arange(columns)
        result.positions.append(positions)
    return result


INTS = sorted({*range(-9, 10), 31, 32, 33, 63, 64, 65535, 65537, 2**24 + 1, 2**30, 2**31 - 2, 2**31 - 1})
INTS = sorted({*INTS, -31, -32, -33, -64, -65537, -(2**30), -(2**31) + 1, -(2**31)})


def edges(tiles: int) -> Batch:
    """Every op on ranges that start and end at the edges of int32, of bits and of 0; nothing captured but a nan."""
    difference = apply("sub", Q_IDX, KV_IDX)
    number = apply("div", const(1.0), const(3.0))  # unknown
    reals = apply("max", apply("to_float", Q_IDX), const(-2.5)), apply("min", apply("to_float", KV_IDX), const(2.5))
    exprs = [apply(op, Q_IDX, KV_IDX) for op, row in OPS.items() if row.arity == 2 and row.takes in ("number", "int")]
    exprs += [apply(op, Q_IDX) for op, row in OPS.items() if row.arity == 1 and row.takes in ("number", "int")]
    exprs += [apply("mul", Q_IDX, Q_IDX), apply("add", difference, KV_IDX), apply("sub", difference, Q_IDX)]
    exprs += [apply("sub", apply("mul", difference, const(3)), apply("mul", Q_IDX, const(3))), apply("to_int", Q_IDX)]
    for op in ("lt", "le", "eq", "ne"):
        exprs += [apply(op, difference, apply("neg", KV_IDX)), apply(op, apply("add", Q_IDX, KV_IDX), KV_IDX)]
        exprs += [apply(op, *reals), apply(op, reals[0], number)]
        exprs += [apply(op, reals[1], Expr("param", "float", value=0))]
    rounded = [apply(op, real) for op in ("floor", "ceil", "trunc", "round", "neg", "abs") for real in reals]
    exprs += [apply("to_int", real) for real in (*reals, *rounded, number, apply("to_float", reals[0]))]
    truths = [apply("lt", Q_IDX, KV_IDX), apply("le", const(0), KV_IDX)]
    exprs += [apply(op, *truths) for op in ("and", "or", "xor")]
    exprs += [apply("not", truths[0]), apply("to_int", truths[0]), apply("to_int", apply("to_float", truths[0]))]
    exprs += [apply("max", Q_IDX, const(5)), apply("bit_and", Q_IDX, const(-4)), apply("or", truths[0], const(False))]
    exprs += [apply("bit_and", KV_IDX, const(12)), apply("bit_and", KV_IDX, const(-5)), apply("mod", Q_IDX, const(7))]
    exprs += [apply("where", truths[0], Q_IDX, KV_IDX), apply("where", truths[0], truths[1], apply("not", truths[1]))]
    exprs += [apply("to_int", apply("where", truths[0], *reals))]
    rng = np.random.default_rng(0)
    first = rng.integers(len(INTS), size=(2, len(exprs), tiles))
    last = np.minimum(first + rng.choice([0, 0, 1, 3, 40], size=first.shape), len(INTS) - 1)
    values = np.array(INTS)
    zero = np.zeros(first.shape[1:], np.int64)
    corners = [zero, zero, values[first[0]], values[last[0]], values[first[1]], values[last[1]]]
    return Batch(exprs, [math.nan], [], np.stack(corners, axis=-1).astype(np.int32), [])


def is_comparable(expr: Expr, numbers: list[Any]) -> bool:
    """Whether kernels promise numpy's bounds: not for gathers, nor for infinities, which Metal does not know."""
    floats = [leaf.value for leaf in leaves(expr, ("const",))]
    floats += [numbers[leaf.value] for leaf in leaves(expr, ("param",))]
    return not leaves(expr, ("load",)) and not np.isinf(floats).any()


def check_sound(what: Batch, got: np.ndarray) -> None:
    """got: [exprs, tiles, 2], lo and hi."""
    for i, expr in enumerate(what.exprs):
        values = tracer.evaluate(expr, what.positions[i], numbers=what.numbers, arrays=what.arrays)
        values = np.broadcast_to(values, np.broadcast_shapes(values.shape, (TILES, 1, 1))).reshape(TILES, -1)
        lo, hi = got[i].T
        wrong = np.flatnonzero((lo > values.min(axis=1)) | (values.max(axis=1) > hi))
        assert not len(wrong), f"{expr}\nin the tile {what.tiles[i, wrong[0]]}: {got[i, wrong[0]]}, {values[wrong[0]]}"
    assert (got[..., 0] == got[..., 1]).mean() > 0.25, "bounds that decide nothing would pass"


def check_same(what: Batch, got: np.ndarray, different: float = 0.0) -> None:
    """got: [exprs, tiles, 2], as tracer.bounds gives it for each tile by itself; a small part may be tighter."""
    compared = tighter = 0
    for expr, tiles, bounds in zip(what.exprs, what.tiles.tolist(), got.tolist(), strict=True):
        if not is_comparable(expr, what.numbers):
            continue
        for tile, found in zip(tiles, bounds, strict=True):
            b, h, *edge = tile
            ranges = {"b": (b, b), "h": (h, h), "q_idx": (edge[0], edge[1]), "kv_idx": (edge[2], edge[3])}
            want = [int(bound) for bound in tile_bounds(expr, ranges, what.numbers)]
            assert want[0] <= found[0] and found[1] <= want[1], (
                f"{expr}\nin the tile {tile}: {found}, tracer.bounds gives {want}"
            )
            compared += 1
            tighter += want != found
    assert compared > 2 * TILES
    assert tighter <= different * compared, f"{tighter} of {compared} bounds are not those of tracer.bounds"


# --- C++ ------------------------------------------------------------------------------------------------------------

CPP_FUNCTIONS = """
inline void store(int64_t* out, bounds::Range r) { out[0] = r.lo, out[1] = r.hi; }
inline void store(int64_t* out, bounds::Truth t) { out[0] = t.must, out[1] = t.may; }
#define EXPORTED extern "C" __attribute__((visibility("default")))
"""
CPP_FUNCTION = """
EXPORTED void run_{i}(const int32_t* tiles, int64_t* out, const Array* arrays, const Number* numbers) {{
  const Inputs in = {{arrays, numbers, nullptr}};
  (void)in;
  for (int t = 0; t < {tiles}; t++, tiles += 6, out += 2) {{
    int batch = tiles[0], head = tiles[1];
    int q_first = tiles[2], q_last = tiles[3], kv_first = tiles[4], kv_last = tiles[5];
    (void)batch, (void)head, (void)q_first, (void)q_last, (void)kv_first, (void)kv_last;
    {statements}
    store(out, {result});
  }}
}}
"""


def run_cpp(what: Batch, folder: Path) -> np.ndarray:
    text = assemble(Path(cpu.__file__).parent, "mod/gathers.h", {}) + CPP_FUNCTIONS
    for i, expr in enumerate(what.exprs):
        statements, result = range_lines(expr, CPP_RANGES)
        text += CPP_FUNCTION.format(i=i, tiles=what.tiles.shape[1], statements="\n    ".join(statements), result=result)
    (folder / "bounds.cpp").write_text(text, encoding="ascii")
    compiler = find_compiler()
    assert compiler is not None
    compiler.build(folder / "bounds.cpp", folder / "bounds.so")
    library = ctypes.CDLL(str(folder / "bounds.so"))
    numbers = b"".join(PACKED[type(number)].pack(number) for number in what.numbers)
    arrays = b""
    for array in what.arrays:
        rest = (0,) * (8 - array.ndim)
        strides = (stride // array.itemsize for stride in array.strides)
        arrays += ARRAY.pack(array.ctypes.data, *array.shape, *rest, *strides, *rest, array.ndim)
    out = np.zeros((*what.tiles.shape[:2], 2), np.int64)
    for i in range(len(what.exprs)):
        at = (ctypes.c_void_p(what.tiles[i].ctypes.data), ctypes.c_void_p(out[i].ctypes.data))
        getattr(library, f"run_{i}")(*at, arrays, numbers)
    return out


def test_cpp_bounds(tmp_path: Path) -> None:
    what = batch(range(150), most_arrays=4)
    got = run_cpp(what, tmp_path)
    check_sound(what, got)
    check_same(what, got, different=0.02)


def test_cpp_bounds_at_the_edges(tmp_path: Path) -> None:
    what = edges(500)
    check_same(what, run_cpp(what, tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_cpp_bounds_long(part: int, tmp_path: Path) -> None:
    what = batch(range(10_000 + 300 * part, 10_300 + 300 * part), most_arrays=4)
    got = run_cpp(what, tmp_path)
    check_sound(what, got)
    check_same(what, got, different=0.02)


def test_the_cpp_header_has_no_warnings(tmp_path: Path) -> None:
    compiler = find_compiler()
    assert compiler is not None
    header = Path(cpu.__file__).parent / "mod" / "gathers.h"
    options = ("-std=c++17", "-Wall", "-Wextra", "-Wno-psabi", "-fsyntax-only", "-x", "c++")
    done = subprocess.run([compiler.path, *options, str(header)], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "warning" in line and "pragma once" not in line] == []


# --- Metal ----------------------------------------------------------------------------------------------------------

METAL_FUNCTIONS = """
inline void store(device int* out, bounds::Range r) { out[0] = int(r.lo), out[1] = int(r.hi); }
inline void store(device int* out, bounds::Truth t) { out[0] = t.must, out[1] = t.may; }
"""
METAL_PLACE = """
  int t = int(thread_position_in_grid.x);
  device int* out_of_tile = out + 2 * t;
  const device int* tile = tiles + 6 * t;
  (void)tile;
  int batch = tile[0], head = tile[1], last_head = head;
  int q_first = tile[2], q_last = tile[3], kv_first = tile[4], kv_last = tile[5];
"""
READ_NUMBER = {bool: "bool number{0} = numbers[{0}] != 0;", int: "int number{0} = numbers[{0}];"}
READ_NUMBER[float] = "float number{0} = as_type<float>(numbers[{0}]);"


def metal_body(what: Batch) -> str:
    lines = [METAL_PLACE]
    for i, expr in enumerate(what.exprs):
        used = sorted({leaf.value for leaf in leaves(expr, ("param",))})
        statements, result = range_lines(expr, METAL_RANGES)
        lines += [f"  if (t / {what.tiles.shape[1]} == {i}) {{"]
        lines += [f"    const {READ_NUMBER[type(what.numbers[slot])].format(slot)}" for slot in used]
        lines += [*(f"    {line}" for line in statements), f"    store(out_of_tile, {result});", "  }"]
    return "\n".join(lines) + "\n"


def metal_text() -> str:
    return assemble(metal.FOLDER, "mod/bounds.h", {}) + METAL_FUNCTIONS


def run_metal(what: Batch) -> np.ndarray:
    numbers = b"".join(PACKED[type(number)].pack(number) for number in what.numbers) or bytes(4)
    names = [f"array{slot}" for slot in range(len(what.arrays))]
    kernel = flex.simulator.metal_kernel(
        "bounds", ["tiles", "numbers", *names], ["out"], metal_body(what), metal_text(), ensure_row_contiguous=False
    )
    shape = (*what.tiles.shape[:2], 2)
    inputs = [mx.array(what.tiles), mx.array(np.frombuffer(numbers, np.int32)), *(mx.array(a) for a in what.arrays)]
    (out,) = kernel(
        inputs=inputs,
        output_shapes=[shape],
        output_dtypes=[mx.int32],
        grid=(shape[0] * shape[1], 1, 1),
        threadgroup=(32, 1, 1),
    )
    return np.array(out).astype(np.int64)


@pytest.mark.parametrize(("first", "count", "most_arrays"), [(0, 60, 0), (500, 8, 1), (600, 8, 1)])
def test_metal_bounds(first: int, count: int, most_arrays: int) -> None:
    what = batch(range(first, first + count), most_arrays)
    what = what._replace(arrays=[np.ascontiguousarray(array) for array in what.arrays])
    got = run_metal(what)
    check_sound(what, got)
    check_same(what, got, different=0.02)


def test_metal_bounds_at_the_edges() -> None:
    what = edges(150)
    check_same(what, run_metal(what))


CLANG_KERNEL = """
template <typename Array0>
struct Mods {
  Array0 array0;
  const constant int* array0_shape;
  const constant int64_t* array0_strides;
  int number0, number1;
  int tile_state(int batch, int head, int last_head, int q_first, int q_last, int kv_first, int kv_last) const thread {
BODY
  }
};
__kernel void run(device int* out, const device TYPE* large, const constant TYPE* small, const constant int* shape,
                  const constant int64_t* strides) {
  Mods<const device TYPE*> mods = {large, shape, strides, 1, 2};
  Mods<const constant TYPE*> others = {small, shape, strides, 1, 2};
  out[0] = mods.tile_state(0, 0, 0, 0, 1, 2, 3) + others.tile_state(0, 0, 0, 0, 1, 2, 3);
}
"""


@pytest.mark.skipif(clang_check.CLANG is None, reason="no clang: apt-get install clang")
@pytest.mark.parametrize("name", ["document_ids", "global_and_window", "tree_ancestor", "block_diffusion"])
def test_clang_accepts_tile_state(name: str, tmp_path: Path) -> None:
    """Address spaces of the header and of emitted text, with arrays in device and in constant memory."""
    trace = flex.mask_mod(zoo.ZOO[name].make(2, 2, 64, 64, np.random.default_rng(0))).trace()
    kind = msl_type(trace.arrays[0].element) if trace.arrays else "int"
    kernel = CLANG_KERNEL.replace("BODY", tile_state_body(trace.expr, METAL_RANGES)).replace("TYPE", kind)
    source = (metal_text() + kernel).replace("#include <metal_stdlib>", "")
    assert clang_check.complaints(source, tmp_path) == ""
    assert clang_check.unqualified_pointers(source, tmp_path) == []


# --- tile_state -----------------------------------------------------------------------------------------------------

DOCUMENTS_IN_CPP = """\
const bounds::Range b = bounds::exactly(batch);
const bounds::Range q_idx = bounds::range(q_first, q_last);
const bounds::Range kv_idx = bounds::range(kv_first, kv_last);
return bounds::state(bounds::eq(bounds::load<int32_t>(in, 0, b, q_idx), bounds::load<int32_t>(in, 0, b, kv_idx)));"""
BAND_IN_METAL = """\
const bounds::Range q_idx = bounds::range(q_first, q_last);
const bounds::Range kv_idx = bounds::range(kv_first, kv_last);
const auto e0 = bounds::sub(q_idx, kv_idx);
return bounds::state(bounds::and_(bounds::le(bounds::exactly(0), e0), bounds::lt(e0, bounds::exactly(number0))));"""


def test_the_text_of_tile_state() -> None:
    documents = zoo.ZOO["document_ids"].make(2, 2, 64, 64, np.random.default_rng(0))
    band = zoo.ZOO["causal_window"].make(2, 2, 64, 64, np.random.default_rng(0))
    assert tile_state_body(flex.mask_mod(documents).expr, CPP_RANGES) == DOCUMENTS_IN_CPP
    assert tile_state_body(flex.mask_mod(band).expr, METAL_RANGES) == BAND_IN_METAL


def test_what_cannot_be_bounded_is_one_unknown() -> None:
    wave = apply("lt", apply("sin", apply("mul", apply("to_float", Q_IDX), const(2.0))), const(0.5))
    assert tile_state_body(wave, CPP_RANGES).splitlines()[-1] == (
        "return bounds::state(bounds::lt(bounds::unknown(), bounds::exactly(0.5f)));"
    )
