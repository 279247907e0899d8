"""Queries -> answers on the terminal: embed the documents with flextrace, compare with MLX's SDPA, search."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

import flextrace as flex
from flextrace.show.terminal import output, print_table

from .corpus import Document
from .corpus import documents as standard_library
from .encoder import HEAD_DIM, HEADS, LAYERS, WIDTH, Attention, Encoder
from .packing import Pack, pack
from .weights import DemoError, load_encoder, load_tokenizer, model_folder

DOCUMENTS = 800  # about a minute on two cores, nearly all of it MLX's matrix products
MAX_TOKENS = 64  # the name and the first sentences of a docstring
PACK_LENGTH = 2048
EXAMPLE_QUERIES = (
    "how do I parse a date",
    "run a shell command and capture its output",
    "pick a random element from a list",
)
ANSWERS = 3
NEXT = {
    'demo "how do I sort a list"': "asks something else",
    "demo train": "trains a language model with a learned bias",
    "show flextrace.mods:causal": "a mask, its expression, its kernel",
    "simulate flextrace.mods:causal": "it in the Metal kernel, without a Mac",
    "doctor": "checks every kernel on this machine",
}

FloatRows = npt.NDArray[np.float64]


def run(queries: Sequence[str] = (), documents: int | None = None, console: Console | None = None) -> None:
    """Embed `documents` docstrings of the standard library and answer `queries` (default: three examples).

    Raises DemoError, whose message names the remedy, when the weights or the tokenizer are missing or damaged.
    """
    started = perf_counter()
    console = console or output()
    if documents is not None and documents < 1:
        raise DemoError(f"--documents must be at least 1, got {documents}")
    folder = model_folder()
    tokenizer = load_tokenizer(folder, MAX_TOKENS)
    encoder = load_encoder(folder)

    def packed(texts: Sequence[str]) -> list[Pack]:
        return pack([encoding.ids for encoding in tokenizer.encode_batch(list(texts))], PACK_LENGTH)

    console.print(f"[bold]Semantic search over the docstrings of Python {platform.python_version()}[/bold]")
    console.print(f"Encoder all-MiniLM-L6-v2: {LAYERS} layers, {HEADS} heads of {HEAD_DIM}, float32.")
    corpus = standard_library(documents or DOCUMENTS)
    packs = packed([passage(document) for document in corpus])
    tokens = sum(one.length for one in packs)
    console.print(
        f"{len(corpus):,} docstrings, {tokens:,} tokens, packed without padding, at most {PACK_LENGTH:,} a pack.\n"
    )

    first_call = first_use(packs[0])
    embeddings, ours, total = embed(encoder, packs, console)
    theirs = Timed(dense_mask_attention(packs[0]))
    with console.status(f"the same with mx.fast.scaled_dot_product_attention, pack 1 of {len(packs)}"):
        expected = encoder(packs[0], theirs)
        mx.eval(expected)
    compare(console, packs, ours, theirs, first_call)
    same = cosine(embeddings[: packs[0].documents], expected).diagonal().min()
    console.print(
        f"Same embeddings: smallest cosine of the {packs[0].documents} documents of pack 1: 1 - {1 - same:.0e}.\n"
        f"Encoding took {total:.1f} s, {sum(ours):.2f} s of it attention; the rest is MLX's matrix products.\n"
    )

    questions = list(queries or EXAMPLE_QUERIES)
    vectors = mx.concatenate([encoder(one, document_attention(one)) for one in packed(questions)])
    answer(console, questions, cosine(vectors, embeddings), corpus)
    console.print(f"[dim]Total {perf_counter() - started:.0f} s.[/dim]\n")
    what_next(console)


def what_next(console: Console) -> None:
    """Commands to try, as this one was typed."""
    typed = Path(sys.argv[0])
    command = str(typed) if typed.name == "flextrace" and shutil.which("flextrace") != str(typed) else "flextrace"
    table = Table.grid(padding=(0, 2))
    table.add_column(width=max(len(f"{command} {arguments}") for arguments in NEXT))
    for arguments, what in NEXT.items():
        table.add_row(Text(f"{command} {arguments}"), what)
    console.print(Text("Next", style="bold"), table, sep="\n")
    console.print("A mod of your own: write the function in a file, then show FILE.py:NAME, or call it as README does.")


def passage(document: Document) -> str:
    """What is embedded: the name, and what the docstring says first."""
    return f"{document.name}: {document.opening}"


def document_attention(pack: Pack) -> Attention:
    """flextrace: a token attends to the tokens of its own document."""
    document = pack.document

    @flex.mask_mod
    def same_document(b: int, h: int, q_idx: int, kv_idx: int) -> mx.array:
        return document[q_idx] == document[kv_idx]

    return lambda q, k, v: flex.flex_attention(q, k, v, block_mask=same_document)


def dense_mask_attention(pack: Pack) -> Attention:
    """The same attention by MLX's own kernel, which takes the mask as a [length, length] array."""
    mask = pack.document[:, None] == pack.document[None, :]
    mx.eval(mask)
    return lambda q, k, v: mx.fast.scaled_dot_product_attention(q, k, v, scale=HEAD_DIM**-0.5, mask=mask)


@dataclass
class Timed:
    """An attention function that counts the seconds inside it: MLX is lazy, so inputs and outputs are evaluated."""

    attention: Attention
    layer_done: Callable[[], None] = lambda: None
    seconds: float = 0.0

    def __call__(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        mx.eval(q, k, v)
        start = perf_counter()
        out = self.attention(q, k, v)
        mx.eval(out)
        self.seconds += perf_counter() - start
        self.layer_done()
        return out


def first_use(pack: Pack) -> float:
    """Seconds of the first call: flextrace traces the mask and compiles the kernel, or finds it on the disk."""
    q, k, v = mx.random.normal((3, 1, HEADS, pack.length, HEAD_DIM))
    timed = Timed(document_attention(pack))
    timed(q, k, v)
    return timed.seconds


def embed(encoder: Encoder, packs: Sequence[Pack], console: Console) -> tuple[mx.array, list[float], float]:
    """-> embeddings [documents, WIDTH], seconds inside attention for every pack, seconds in all."""
    documents = sum(one.documents for one in packs)
    progress = Progress(
        TextColumn("Encoding"),
        BarColumn(24),
        TaskProgressColumn(),
        TextColumn("{task.fields[documents]:,} documents"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"),
        console=console,
    )
    start = perf_counter()
    rows: list[mx.array] = []
    seconds: list[float] = []
    with progress:
        task = progress.add_task("", total=LAYERS * sum(one.length for one in packs), documents=0, rate=0.0)
        done = tokens = 0
        for one in packs:
            timed = Timed(document_attention(one), partial(progress.advance, task, one.length))
            rows.append(encoder(one, timed))
            mx.eval(rows[-1])
            seconds.append(timed.seconds)
            done, tokens = done + one.documents, tokens + one.length
            progress.update(task, documents=done, rate=tokens / (perf_counter() - start))
    embeddings = mx.concatenate(rows)
    assert embeddings.shape == (documents, WIDTH)
    return embeddings, seconds, perf_counter() - start


def compare(console: Console, packs: Sequence[Pack], ours: Sequence[float], theirs: Timed, first_call: float) -> None:
    """The table of times inside attention; the slower kernel ran on pack 1 only, and the table says so."""
    tokens = sum(one.length for one in packs)
    table = Table(title="Time inside attention", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column()
    table.add_column(f"pack 1 ({packs[0].length:,} tokens)", justify="right")
    table.add_column(f"all packs ({tokens:,} tokens)", justify="right")
    table.add_row("flextrace, mask_mod", duration(ours[0]), duration(sum(ours)), style="green")
    table.add_row("mx.fast SDPA, boolean mask", duration(theirs.seconds), "not run")
    table.add_row("ratio", f"{theirs.seconds / ours[0]:,.0f} x", "")
    print_table(console, table)
    console.print(f"Not in the table: flextrace's first call (trace, compile or load), {duration(first_call)}.")


def cosine(ours: mx.array, theirs: mx.array) -> FloatRows:
    """[n, WIDTH], [m, WIDTH] -> [n, m], in float64: float32 sums would be off by 1e-6."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return np.asarray(a @ b.T)


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def answer(console: Console, queries: Sequence[str], scores: FloatRows, corpus: Sequence[Document]) -> None:
    """scores: [queries, documents], cosine similarities; prints the ANSWERS best of each query."""
    for query, row in zip(queries, scores, strict=True):
        best = [(float(row[place]), corpus[place]) for place in np.argsort(-row, kind="stable")[:ANSWERS]]
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", width=4)
        table.add_column(style="bold", width=max(len(document.name) for _, document in best))
        table.add_column()  # the only one that shrinks to the terminal
        for score, document in best:
            opening = Text(document.opening, no_wrap=True, overflow="ellipsis")
            table.add_row(f"{score:.2f}", document.name, opening)
        console.print(Text(f"? {query}", style="bold cyan"), table, "", sep="\n", soft_wrap=False)
