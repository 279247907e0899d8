"""Text -> a trained language model, on the terminal: what it cost, beside MLX's own attention, and what it writes."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from time import perf_counter
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from flextrace.bench.measure import PeakMemory
from flextrace.show.terminal import output, print_table

from .characters import ALPHABET, Batch, batches, decoded, encoded, text_of
from .corpus import documents
from .language_model import Attend, LanguageModel, fused, loss_of, unfused
from .weights import DemoError

WIDTH, HEADS, LAYERS, WINDOW = 64, 4, 2, 64
LENGTH, BATCH = 1024, 1  # characters of a step
STEPS = 200  # about a minute on two cores, most of it MLX's matrix products
COMPARED = 6  # steps that both kinds of attention take; the later half is timed
CLOSE = 1e-5  # relative: how far rounding may take two losses apart in so few steps
PROMPTS = ("Return the ", "list.append\n\n", "If the file ")
WRITTEN = 160  # characters after each prompt
WAYS: dict[str, Callable[[LanguageModel, int], Attend]] = {"flextrace": fused, "MLX, unfused": unfused}


def train(steps: int | None = None, console: Console | None = None) -> None:
    """Train a model on the docstrings of the installed Python and print what it cost and what it writes.

    Raises:
        DemoError: --steps is too small, or a loss differs from that on MLX's own attention by more than rounding.
    """
    started = perf_counter()
    console = console or output()
    steps = STEPS if steps is None else steps
    if steps < COMPARED:
        raise DemoError(f"--steps must be at least {COMPARED}, got {steps}")
    console.print(f"[bold]A language model of the docstrings of Python {platform.python_version()}[/bold]")
    numbers = encoded(text_of(documents()))
    text = batches(numbers, BATCH, LENGTH, seed=0)
    learners = {name: Learner.of(way, steps) for name, way in WAYS.items()}
    ours = learners["flextrace"]
    size = sum(parameter.size for parameter in ours.parameters())
    console.print(
        f"{len(numbers):,} characters, each a token. {size:,} parameters: {LAYERS} layers, {HEADS} heads of "
        f"{WIDTH // HEADS}, a T5 bias\nand a sink per head, a window of {WINDOW} keys; {steps} steps of "
        f"{BATCH} x {LENGTH} tokens, Muon and Adam.\n"
    )
    with progress_bar(console) as progress:
        bar = progress.add_task("Comparing", total=COMPARED, loss="", rate="")
        for batch in islice(text, COMPARED):
            for learner in learners.values():
                learner.step(batch)
            progress.update(bar, advance=1, loss=f"loss {ours.losses[-1]:.3f}")
    with console.status("the memory of a step of both, in new processes"):
        memory = {name: memory_of_a_step(name, LENGTH) for name in WAYS}
    compare(console, learners, memory)
    run(console, ours, text, steps - COMPARED)
    for seed, prompt in enumerate(PROMPTS):
        line = Text(" ".join((prompt + write(ours.model, prompt, WRITTEN, seed=seed)).split()))
        line.stylize("bold cyan", 0, len(prompt.strip()))
        console.print(line, "", sep="\n", soft_wrap=False)
    console.print(
        f"[dim]Total {perf_counter() - started:.0f} s. notebooks/6_training.ipynb has such a bias in pictures.[/dim]"
    )


@dataclass
class Learner:
    """A model in training, on one kind of attention, and what its steps cost."""

    model: LanguageModel
    optimiser: optim.Optimizer
    way: Callable[[LanguageModel, int], Attend]
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @staticmethod
    def of(way: Callable[[LanguageModel, int], Attend], steps: int) -> Learner:
        """The same model whatever the way: its weights are drawn from one seed."""
        mx.random.seed(0)
        learner = Learner(LanguageModel(WIDTH, HEADS, LAYERS, WINDOW), optimiser_for(steps), way)
        mx.eval(learner.parameters())
        return learner

    def parameters(self) -> list[mx.array]:
        named: Any = tree_flatten(self.model.parameters())  # type: ignore[no-untyped-call]
        return [parameter for _, parameter in named]

    def step(self, batch: Batch) -> None:
        mx.eval(batch)
        start = perf_counter()
        loss, gradients = nn.value_and_grad(self.model, loss_of)(self.model, *batch, self.way)
        self.optimiser.update(self.model, gradients)
        mx.eval(loss, self.parameters(), self.optimiser.state)
        self.seconds.append(perf_counter() - start)
        self.losses.append(loss.item())


def memory_of_a_step(way: str, length: int) -> int:
    """The most bytes that a step holds at once above what the process held before it: in a new process, because memory
    that was freed before would be counted as none. On Linux of the process, elsewhere of MLX's arrays."""
    program = f"from flextrace.demo.training import print_memory; print_memory({way!r}, {length})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"a step in a new process failed:\n{done.stderr}")
    return int(done.stdout)


def print_memory(way: str, length: int) -> None:
    learner = Learner.of(WAYS[way], COMPARED)
    text = mx.arange(length + 1, dtype=mx.int32) % len(ALPHABET)
    learner.step(next(batches(text, 1, 16, seed=0)))  # what is loaded, compiled and made once
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    process = PeakMemory() if sys.platform == "linux" else None
    learner.step(next(batches(text, BATCH, length, seed=0)))
    print(mx.get_peak_memory() - before if process is None else process.bytes())


def optimiser_for(steps: int) -> optim.Optimizer:
    """Muon for the matrices of the blocks (Jordan et al., 2024), Adam for tables, norms and sinks; both warm up over a
    twelfth of the steps and fall to a tenth by a cosine."""

    def falling(most: float) -> Callable[[mx.array], mx.array]:
        warm = max(1, steps // 12)
        up, down = optim.linear_schedule(most / warm, most, warm), optim.cosine_decay(most, steps - warm, most / 10)
        return optim.join_schedules([up, down], [warm])

    return optim.MultiOptimizer(
        [optim.Muon(falling(0.03), weight_decay=0.0), optim.Adam(falling(0.025), betas=[0.9, 0.99])],
        [lambda name, weight: name.startswith("blocks") and weight.ndim == 2],
    )


def compare(console: Console, learners: dict[str, Learner], memory: dict[str, int]) -> None:
    """The table of both kinds of attention. Raises DemoError where they do not learn the same."""
    ours, theirs = learners.values()
    apart = max(abs(a - b) / b for a, b in zip(ours.losses, theirs.losses, strict=True))
    table = Table(
        title=f"The first {COMPARED} steps", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for name in ("", "a step", "tokens/s", "memory of a step", "first loss", "last loss"):
        table.add_column(name, justify="right" if name else "left")
    for name, learner in learners.items():
        seconds = median(learner.seconds[COMPARED // 2 :])
        figures = (f"{seconds * 1e3:.0f} ms", f"{BATCH * LENGTH / seconds:,.0f}", f"{memory[name] / 1e6:.0f} MB")
        losses = (f"{learner.losses[0]:.5f}", f"{learner.losses[-1]:.5f}")
        table.add_row(name, *figures, *losses, style="green" if learner is ours else None)
    print_table(console, table)
    if not apart < CLOSE:
        raise DemoError(
            f"the losses differ by {apart:.1e} of their size, more than rounding explains: {ours.losses} on flextrace, "
            f"{theirs.losses} on MLX's attention; please report this"
        )
    console.print(f"The same model, weights and text: their losses differ by at most {apart:.0e} of their size.\n")


def run(console: Console, learner: Learner, text: Iterator[Batch], steps: int) -> None:
    """The rest of the training."""
    with progress_bar(console) as progress:
        bar = progress.add_task("Training", total=steps, loss="", rate="")
        start = perf_counter()
        for number, batch in enumerate(islice(text, steps), 1):
            learner.step(batch)
            rate = number * BATCH * LENGTH / (perf_counter() - start)
            latest = learner.losses[-20:]
            loss = f"loss {sum(latest) / len(latest):.3f}"
            progress.update(bar, advance=1, loss=loss, rate=f"{rate:,.0f} tokens/s")
    console.print()


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.completed}/{task.total}"))
    return Progress(*columns, TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[rate]}"), console=console)


def write(model: LanguageModel, prompt: str, characters: int, temperature: float = 0.6, seed: int = 0) -> str:
    """What the model writes after the prompt, drawn character by character."""
    numbers, key = encoded(prompt), mx.random.key(seed)
    for _ in range(characters):
        key, draw = mx.random.split(key)
        logits = model(numbers[None, -LENGTH:], fused)[0, -1]
        drawn = mx.random.categorical(logits / temperature, key=draw)
        numbers = mx.concatenate([numbers, drawn[None].astype(mx.int32)])
        mx.eval(numbers, key)
    return decoded(numbers[len(prompt) :])
