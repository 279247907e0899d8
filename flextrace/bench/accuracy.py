"""Inputs, mods -> how far quantised attention is from float64: `flextrace bench --accuracy`.

plain: normal q, k, v. outlier: every 16th channel of k has a bias of 5 to 15, the same for all tokens, as the papers
find it in models. The backend "reference" is the algorithm in numpy (quantised.py), for machines without a kernel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import flextrace as flex
from flextrace import MaskMod, QKQuant, ScoreMod, mods
from flextrace.decorators import bound
from flextrace.exact import exact_attention, quantised_attention
from flextrace.int8.smoothing import smoothed
from flextrace.kernels import BACKENDS, AttentionCall
from flextrace.show.terminal import output, print_table, working

from .measure import BenchError

INPUTS = ("plain", "outlier")
DTYPES = ("float32", "float16", "bfloat16")
QUANTS = {
    "block": QKQuant("block"),
    "block, K as it is": QKQuant("block", smooth_k=False),
    "row": QKQuant("row"),
    "row, K as it is": QKQuant("row", smooth_k=False),
}
COSINE, RELATIVE_L1 = 0.9999, 0.013  # targets with smoothed K
PAPERS = (
    ("SageAttention, average of its models, FP16 P.V (their claim)", "0.99980", "0.0156", "2.94e-03"),
    ("its Triton kernel on an H100, biased K, no mod, 2x16x4096x128", "0.99992", "0.0126", ""),
)
Mods = tuple[ScoreMod | None, MaskMod | None]


@dataclass(frozen=True)
class Row:
    """One result beside float64: cosine similarity, sum |error| / sum |exact|, root mean square error, largest error.

    row_term: what becomes of scale * q . mean(k): "dropped" or "added back"; "" where K is as it is.
    """

    inputs: str
    mod: str
    quant: str
    row_term: str
    cosine: float
    relative_l1: float
    rmse: float
    largest: float

    @property
    def met(self) -> bool | None:
        """Whether it meets the targets, which are for smoothed K."""
        return self.cosine >= COSINE and self.relative_l1 <= RELATIVE_L1 if self.row_term else None


def zoo(heads: int, length: int) -> dict[str, Mods]:
    """The mods by name: masks, and scores with and without the shift invariance that smoothing asks for."""
    rng = np.random.default_rng(1)
    cuts = sorted(rng.choice(np.arange(1, length), min(7, length - 1), replace=False))
    offsets = [0, *(int(cut) for cut in cuts), length]
    side = max(3, math.isqrt(length))
    masks: dict[str, MaskMod] = {
        "causal": mods.causal,
        "window": mods.sliding_window(max(1, length // 8)),
        "prefix": mods.prefix_lm(length // 4),
        "documents": mods.document(offsets=offsets),
        "causal documents": mods.causal_document(offsets),
        "natten": mods.natten((max(3, -(-length // side)), side), (3, 3)),
    }
    scores: dict[str, ScoreMod] = {
        "alibi": mods.alibi(heads),
        "relative bias": mods.relative_bias(rng.normal(size=(heads, 129)).astype(np.float32)),
        "t5": mods.t5_bias(rng.normal(size=(32, heads)).astype(np.float32)),
        "sandwich": mods.sandwich(heads, length),
        "softcap": mods.softcap(30.0),
        "sigmoid": mods.activation("sigmoid"),
        "relu": mods.activation("relu", offset=1.0),
    }
    both: dict[str, Mods] = {"none": (None, None), **{name: (None, mask) for name, mask in masks.items()}}
    both |= {name: (score, None) for name, score in scores.items()}
    return both | {"softcap + causal documents": (scores["softcap"], masks["causal documents"])}


NAMES = tuple(zoo(1, 16))


def tensors(kind: str, shape: Sequence[int], dtype: str) -> tuple[mx.array, mx.array, mx.array]:
    """q, k, v: [batch, heads, length, head_dim]."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape) for _ in range(3))
    if kind == "outlier":
        bias = np.zeros((1, shape[1], 1, shape[3]))
        channels = bias[..., ::16].shape
        bias[..., ::16] = rng.choice([-1, 1], channels) * rng.uniform(5, 15, channels)
        k = k + bias
    of_dtype = [mx.array(x).astype(getattr(mx, dtype)) for x in (q, k, v)]
    return of_dtype[0], of_dtype[1], of_dtype[2]


def measure(inputs: str, mod: str, shape: Sequence[int], dtype: str, backend: str) -> list[Row]:
    """The figures of one mod on one kind of inputs, for every way to quantise.

    Raises:
        ValueError: the backend does not quantise; the message names those that do.
        BackendUnavailable: it cannot run here.
    """
    score, mask = zoo(shape[1], shape[2])[mod]
    q, k, v = tensors(inputs, shape, dtype)
    call = AttentionCall.of(q, k, v, shape[3] ** -0.5, bound(score, mask))
    exact = exact_attention(call).out
    added = call.mods.needs_row_term
    rows = []
    for name, quant in QUANTS.items():
        if backend == "reference":
            out = quantised_attention(smoothed(call._replace(quant=quant, smooth_k=quant.smooth_k))).out
        else:
            options = {"BACKEND": backend, "QK_QUANT": quant}
            got = flex.flex_attention(q, k, v, score, mask, kernel_options=options)
            out = np.array(got.astype(mx.float32)).astype(np.float64)
        term = ("added back" if added else "dropped") if quant.smooth_k else ""
        rows.append(Row(inputs, mod, name, term, *figures(out, exact)))
    return rows


def figures(got: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> tuple[float, float, float, float]:
    """(cosine, relative L1, RMSE, largest error)."""
    error = got - exact
    cosine = (got * exact).sum() / math.sqrt((got**2).sum() * (exact**2).sum())
    l1 = np.abs(error).sum() / np.abs(exact).sum()
    return float(cosine), float(l1), math.sqrt((error**2).mean()), float(np.abs(error).max())


def main(
    *,
    backend: str = "cpu",
    lengths: Sequence[int] = (1024,),
    dtypes: Sequence[str] = ("float16",),
    batch: int = 1,
    heads: int = 4,
    head_dims: Sequence[int] = (128,),
    mods: Sequence[str] = (),
    as_json: bool = False,
) -> bool:
    """Measure and print; whether quantisation by rows, K smoothed, meets the targets everywhere.

    Raises:
        BenchError: an unknown mod, dtype or backend, or a backend that does not quantise, or not here.
    """
    known_backends = (*BACKENDS, "reference")
    for given, known, what in ((mods, NAMES, "mod"), (dtypes, DTYPES, "dtype"), ([backend], known_backends, "backend")):
        for name in given:
            if name not in known:
                raise BenchError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    console = output(stderr=as_json)
    shapes = [(batch, heads, length, head_dim) for length in lengths for head_dim in head_dims]
    cases = [(s, d, inputs, mod) for s in shapes for d in dtypes for inputs in INPUTS for mod in (mods or NAMES)]
    found: dict[tuple[tuple[int, int, int, int], str], list[Row]] = {}
    with working("accuracy", steps=len(cases)) as say:
        for shape, dtype, inputs, mod in cases:
            say(f"{inputs} {mod}")
            try:
                rows = measure(inputs, mod, shape, dtype, backend)
            except (ValueError, flex.BackendUnavailable) as error:
                raise BenchError(f"{error} (without kernels: --backend reference)") from error
            found.setdefault((shape, dtype), []).extend(rows)
            say(f"{inputs} {mod}", done=1)
    if as_json:
        tables = [
            {"shape": shape, "dtype": dtype, "rows": [{**asdict(row), "met": row.met} for row in rows]}
            for (shape, dtype), rows in found.items()
        ]
        print(json.dumps({"backend": backend, "tables": tables}, indent=1))
    else:
        for (shape, dtype), rows in found.items():
            show(rows, f"{backend}, {'x'.join(map(str, shape))}, {dtype}", console)
    return all(row.met for rows in found.values() for row in rows if row.quant == "row")


def show(rows: Sequence[Row], about: str, console: Console) -> None:
    """A table: both granularities beside each other, smoothed and not, and the papers' figures below."""
    note = "; the algorithm in numpy, no kernel ran" if about.startswith("reference") else ""
    table = Table(
        title=f"quantised attention beside float64 ({about}{note})",
        box=box.SIMPLE_HEAD,
        padding=0,
        title_justify="left",
    )
    for name in ("inputs, mod", "int8 per", "row term", "cosine", "relative\nL1", "RMSE", "max\nerror"):
        words = name in ("inputs, mod", "int8 per", "row term")
        table.add_column(name, justify="left" if words else "right", no_wrap=name != "inputs, mod")
    before = ""
    for row in rows:
        name = f"{row.inputs}, {row.mod}"
        numbers = (f"{row.cosine:.5f}", f"{row.relative_l1:.4f}", f"{row.rmse:.2e}", f"{row.largest:.2e}")
        style = {True: "green", False: "red", None: ""}[row.met]
        table.add_row("" if name == before else name, row.quant, row.row_term, *numbers, style=style)
        before = name
    table.add_section()
    for paper, *claimed in PAPERS:
        table.add_row(paper, "block", "dropped", *claimed, "")
    print_table(console, table)
    for quant in ("block", "row"):
        judged = [row for row in rows if row.quant == quant]
        met = sum(bool(row.met) for row in judged)
        console.print(
            f"K smoothed, per {quant}: cosine >= {COSINE} and relative L1 <= {RELATIVE_L1} on {met} of {len(judged)}"
        )
