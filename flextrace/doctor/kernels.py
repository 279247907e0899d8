"""Backend -> checks: every kernel compiled and run on a tiny problem, and compared with float64 numpy.

What a kernel should give is computed from its definition and the plain Python mods, apart from all tracing.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.block_mask import create_block_mask
from flextrace.decorators import MaskMod, ScoreMod, bound
from flextrace.kernels import BACKENDS, AttentionCall, Backend, QKQuant
from flextrace.run import attend

from .exactness import after_mods, alibi, causal, compare, exact, same_document, softcap, softmax, tensors
from .gradients import differentiate
from .stages import STAGES

OK, NOT_AVAILABLE, FAILED = "ok", "not available", "FAILED"
DTYPES = ("float32", "float16", "bfloat16")
HEADS, Q_LEN, KV_LEN = 2, 70, 45  # more than one tile, and none of them whole


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    group: str
    name: str
    status: str
    detail: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Case:
    """One attention call. block_size: the mask goes in as a BlockMask. smooth_k: also where nothing becomes int8."""

    name: str
    score: Callable[..., Any] | None = None
    mask: Callable[..., Any] | None = None
    head_dim: int = 64
    q_len: int = Q_LEN
    block_size: int | None = None
    async_copy: bool = False
    staged: bool = False
    quant: QKQuant | None = None
    smooth_k: bool = False


MODS = (
    Case("attention without mods"),
    Case("attention, alibi and causal", alibi, causal),
    Case("attention, softcap and documents", softcap, same_document),
    Case("attention, causal in blocks of 64", None, causal, block_size=64),
    Case("attention, causal in blocks of 16", None, causal, block_size=16),
    Case("attention of 3 rows, alibi and causal", alibi, causal, q_len=3),
)
ON_METAL = (
    *(Case(f"attention, head dim {dim}", head_dim=dim) for dim in (32, 80, 96, 128, 192, 256)),
    Case("attention with asynchronous copies", alibi, causal, async_copy=True),
    Case("attention, smoothed keys", smooth_k=True),
    Case("attention, int8 by rows", alibi, causal, quant=QKQuant("row")),
    Case("attention, int8 by blocks", softcap, same_document, quant=QKQuant("block", smooth_q=True)),
)
STAGED = (
    Case("all stages without mods", staged=True),
    Case("all stages, softcap and documents", softcap, same_document, staged=True),
)


def check_backend(name: str) -> Iterator[Check]:
    """The checks of one backend, as they are made; a single line where it cannot run here."""
    try:
        backend = BACKENDS[name]()
        reason = backend.unavailable()
    except Exception as error:
        yield Check(name, "available", FAILED, first_failing_line(error))
        return
    if reason is not None:
        yield Check(name, "kernels", NOT_AVAILABLE, reason)
        return
    cases = [*MODS, *(ON_METAL if name in ("metal", "simulator") else ())]
    for case in cases:
        yield _checked(backend, case.name, functools.partial(_attend, backend, case))
    dtypes = DTYPES[:1] if name == "simulator" else DTYPES  # seconds each there
    gradients = functools.partial(differentiate, backend)
    yield _checked(backend, "gradients, two captured biases and causal", gradients, dtypes)
    yield from _check_stages(backend)


def _check_stages(backend: Backend) -> Iterator[Check]:
    try:
        stages = backend.stages()
    except ValueError as reason:
        yield Check(backend.name, "stage kernels", NOT_AVAILABLE, str(reason))
    except Exception as error:
        yield Check(backend.name, "stage kernels", FAILED, first_failing_line(error))
    else:
        for stage, run in STAGES.items():
            yield _checked(backend, stage, functools.partial(run, stages))
        for case in STAGED:
            yield _checked(backend, case.name, functools.partial(_attend, backend, case))


def _checked(backend: Backend, name: str, run: Callable[[str], str | None], dtypes: Sequence[str] = DTYPES) -> Check:
    """Run in each dtype; the first failure is the check's. `run` says what the kernel could not do, or None."""
    start = time.perf_counter()
    stream: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if backend.name == "metal" and mx.metal.is_available():
        stream = mx.stream(mx.gpu)
    for dtype in dtypes:
        try:
            with stream:
                refusal = run(dtype)
        except Exception as error:
            detail = f"{dtype}: {first_failing_line(error)}"
            return Check(backend.name, name, FAILED, detail, time.perf_counter() - start)
        if refusal is not None:
            return Check(backend.name, name, NOT_AVAILABLE, refusal, time.perf_counter() - start)
    return Check(backend.name, name, OK, " ".join(dtypes), time.perf_counter() - start)


_COMPILER_LINE = re.compile(r"^\s*(\S.*:\d+(?::\d+)?: (?:fatal )?error: .*)$", re.MULTILINE)


def first_failing_line(error: Exception) -> str:
    """`file:line: error: ...` of a compiler's message, else the message's beginning."""
    found = _COMPILER_LINE.search(str(error))
    if found is not None:
        return found[1].strip()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"


def _attend(backend: Backend, case: Case, dtype: str) -> str | None:
    """Run and compare; gives the backend's notice of an option that it did not follow."""
    shapes = [(1, HEADS, length, case.head_dim) for length in (case.q_len, KV_LEN, KV_LEN)]
    q, k, v = tensors(shapes, dtype)
    score = None if case.score is None else ScoreMod(case.score)
    mask = None if case.mask is None else MaskMod(case.mask)
    blocks = None
    if case.block_size is not None and mask is not None:
        blocks = create_block_mask(mask, None, None, case.q_len, KV_LEN, BLOCK_SIZE=case.block_size).blocks
    scale = case.head_dim**-0.5
    asked = {"async_copy": case.async_copy, "staged": case.staged, "quant": case.quant}
    asked["smooth_k"] = case.smooth_k or (case.quant is not None and case.quant.smooth_k)
    call = AttentionCall.of(q, k, v, scale, bound(score, mask), blocks, want_lse=True, want_max=True, **asked)
    result = attend(backend, call)
    scores = scale * (exact(q) @ exact(k).swapaxes(-1, -2))
    weights, highest, total = softmax(after_mods(scores, case.score, case.mask))
    seen = np.maximum(total, np.finfo(np.float64).tiny)  # a row without keys gives 0
    tolerance = dtype if case.quant is None else "int8"
    compare(result.out, weights @ exact(v) / seen[..., None], tolerance, "out")
    compare(result.lse, np.where(total > 0, highest + np.log(seen), -np.inf), tolerance, "lse")
    compare(result.max_scores, highest, tolerance, "max_scores")
    return result.notice
