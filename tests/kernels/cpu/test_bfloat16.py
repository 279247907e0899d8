"""bfloat16 on the CPU, by the machine's instruction and without it, against float64 numpy within one bound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference

import flextrace as flex
from flextrace.kernels import cpu, toolchain
from flextrace.kernels.cpu.generate import kernel_text
from flextrace.kernels.spec import ATTENTION, Formulas, KernelSpec

PORTABLE = "-DFLEXTRACE_PORTABLE_BFLOAT16"
FLAGS = {"native": (), "portable": (PORTABLE,)}
HAS_INSTRUCTION = "avx512_bf16" in toolchain.cpu_features()
Array = np.ndarray


@pytest.fixture(params=FLAGS)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Kernels are compiled with these flags, too."""
    flags = (*toolchain.native_flags(), *FLAGS[request.param])
    monkeypatch.setenv("FLEXTRACE_BACKEND", "cpu")
    monkeypatch.setattr(toolchain, "native_flags", lambda: flags)
    monkeypatch.setattr("flextrace.kernels.registry.made", {})
    toolchain.find_compiler.cache_clear()
    yield request.param
    toolchain.find_compiler.cache_clear()


def numbers(rng: np.random.Generator, *shape: int, factor: float = 1.0) -> mx.array:
    return mx.array((rng.normal(size=shape) * factor).astype(np.float32)).astype(mx.bfloat16)


def exact(x: mx.array) -> Array:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def check(q: mx.array, k: mx.array, v: mx.array, kept: Array | None = None, scale: float | None = None) -> None:
    """Attention where kept [q_len, kv_len], float64 by float64."""
    mask = None
    if kept is not None:
        table = mx.array(kept)
        mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: table[q_idx, kv_idx])
    out, lse = flex.flex_attention(q, k, v, block_mask=mask, scale=scale, return_lse=True)
    seen = None if kept is None else lambda b, h, q_idx, kv_idx: kept[q_idx, kv_idx]
    with np.errstate(invalid="ignore"):
        expected = reference.attention(exact(q), exact(k), exact(v), mask_mod=seen, scale=scale)
    bound = reference.tolerance("bfloat16")
    reference.assert_close(out, expected.out, bound.absolute, bound.relative, "out")
    reference.assert_close(lse, expected.lse, bound.statistic_absolute, bound.statistic_relative, "lse")


# q_len of 13 has a group of one row; odd widths leave half a word, odd lengths half a pair of keys.
SHAPES = [(13, 150, 8, 8), (29, 31, 1, 1), (25, 129, 33, 17), (40, 277, 96, 128), (12, 15, 64, 40)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_is_within_its_bound(build: str, shape: tuple[int, int, int, int]) -> None:
    q_len, kv_len, width, value_width = shape
    rng = np.random.default_rng(q_len)
    q, k = numbers(rng, 2, 4, q_len, width), numbers(rng, 2, 2, kv_len, width)
    v = numbers(rng, 2, 2, kv_len, value_width)
    check(q, mx.repeat(k, 2, 1), mx.repeat(v, 2, 1))
    distance = np.arange(q_len)[:, None] + 5 - np.arange(kv_len)
    check(q, mx.repeat(k, 2, 1), mx.repeat(v, 2, 1), (distance >= 0) & (distance < 18))
    # Other strides: every second column of wider tensors, and rows that lie in columns.
    wide, tall = numbers(rng, 2, 4, q_len, 2 * width), numbers(rng, 2, 4, width, kv_len)
    check(wide[..., ::2], tall.swapaxes(2, 3), mx.repeat(v, 2, 1))


def test_values_that_are_all_alike_come_out_as_they_are(build: str) -> None:
    """Weights are rounded, and their sum with them to within what the result is rounded by."""
    rng = np.random.default_rng(0)
    out = flex.flex_attention(
        numbers(rng, 1, 2, 40, 16), numbers(rng, 1, 2, 301, 16), mx.full((1, 2, 301, 8), 3.0, mx.bfloat16)
    )
    assert np.abs(exact(out) - 3).max() <= 3 * 2**-8


# name -> scale, factor of q, factor of k. Unscaled, most of these sums are no float32, or 0.
RANGES = {
    "sums beyond the largest float": (2e-38, 3e19, 3e19),
    "sums beyond the largest float, negative": (-2e-38, 1e20, 1e19),
    "queries beyond it": (1e-30, 2e37, 1e-7),
    "sums below the least": (1e34, 1e-17, 1e-18),
    "a large scale": (2.0**100, 1e-30, 1.0),
    "a scale that is subnormal": (1e-41, 1e20, 1e20),
    "a scale of 0": (0.0, 2e37, 1e-3),
    "a scale above 1": (3.7, 0.5, 0.5),
    "a scale below 0": (-0.3, 1.0, 1.0),
}


@pytest.mark.parametrize("name", RANGES)
def test_scores_of_every_size_are_scaled_without_overflow(build: str, name: str) -> None:
    scale, q_factor, k_factor = RANGES[name]
    rng = np.random.default_rng(1)
    q, k = numbers(rng, 1, 2, 20, 24, factor=q_factor), numbers(rng, 1, 2, 70, 24, factor=k_factor)
    check(q, k, numbers(rng, 1, 2, 70, 9), scale=scale)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("key", [6, 7, 68])
def test_one_key_of_a_pair_does_not_reach_rows_of_the_other(build: str, value: float, key: int) -> None:
    """69 keys: the last one has no neighbour."""
    rng = np.random.default_rng(3)
    q, k, v = (numbers(rng, 1, 1, n, 10) for n in (26, 69, 69))
    v[0, 0, key, 3] = value
    kept = rng.random((26, 69)) < 0.5
    kept[:13, key] = False
    kept[:, key ^ 1 if key < 68 else 67] = True
    check(q, k, v, kept)
    spoiled = mx.array(k)
    spoiled[0, 0, key] = value
    check(q, spoiled, mx.where(mx.isfinite(v), v, 0), kept & (np.arange(69) != key))


def test_the_instruction_is_taken_where_the_machine_has_it(build: str, tmp_path: Path) -> None:
    """And is a part of the kernel's key: homes are shared between machines."""
    compiler = toolchain.find_compiler()
    assert compiler is not None
    source, listing = tmp_path / "kernel.cpp", tmp_path / "kernel.s"
    source.write_text(kernel_text(KernelSpec(ATTENTION, Formulas())))
    done = compiler.run(
        [*(flag for flag in compiler.flags if flag != "-shared"), "-S", "-o", str(listing), str(source)]
    )
    assert done.returncode == 0, done.stderr
    assert ("vdpbf16ps" in listing.read_text()) == (HAS_INSTRUCTION and build == "native")
    fingerprints = set()
    for features in ("avx512f avx512_bf16", "avx512f"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(toolchain, "cpu_features", lambda features=features: features)
            toolchain.find_compiler.cache_clear()
            made: Any = toolchain.find_compiler()
            fingerprints.add(made.fingerprint)
    assert len(fingerprints) == 2
    assert (Path(cpu.__file__).parent / "tile" / "pairs.h").read_text().count(PORTABLE[2:]) == 1
