"""Mods, BlockMasks, kernel texts -> HTML for notebooks; nothing is compiled and the cache is only looked at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

import numpy as np

from flextrace.block_mask import BlockMask
from flextrace.cache import CacheError
from flextrace.decorators import MaskMod, Mod
from flextrace.kernels import Backend, BackendUnavailable, backend_for
from flextrace.kernels.blocks import FULL, PARTIAL
from flextrace.kernels.loading import state as kernel_state
from flextrace.kernels.registry import chosen_name, default_name
from flextrace.kernels.simulator import Report, SimulationError
from flextrace.kernels.spec import Formulas, KernelSpec
from flextrace.kernels.template.assemble import parts
from flextrace.kernels.template.hole import written_by
from flextrace.tracer import (
    Bound,
    Kind,
    NoSource,
    Trace,
    TraceError,
    Untraceable,
    leaves,
    name_of,
    source_of,
    underlying,
)
from flextrace.tracer.source.signature import wrapped

from .cells import mask_cells
from .highlighting import highlighted
from .html import display, table
from .reports import report_html
from .svg import block_svg, states_svg
from .tree import expression_tree

STATES = {
    "memory": "in memory",
    "paired": "in memory, together with another mod",
    "disk": "on disk",
    "nowhere": "not compiled yet",
}
PICTURE_LENGTHS = (32, 1024)  # the least and the most rows of a mask's small picture, which every display paints


def html_of(thing: Mod | BlockMask | Report | SimulationError) -> str:
    """What a notebook shows of a thing that has `_repr_html_`."""
    if isinstance(thing, Mod):
        return mod_html(thing)
    if isinstance(thing, BlockMask):
        return blocks_html(thing)
    return report_html(thing.report if isinstance(thing, SimulationError) else thing)


def mod_html(mod: Mod) -> str:
    """A mod: its source beside its expression, captures, where its kernel is, and the lines made for it, folded.

    A mod that cannot be traced shows the error instead.
    """
    source = _labelled("source", highlighted(user_source(mod), "python"), "wide")
    try:
        bound = mod.bind()
    except (TraceError, ArithmeticError, ValueError) as error:
        wrong = "cannot be traced" if isinstance(error, TraceError) else "a captured number cannot be used"
        return display(_head(mod, wrong), source, f'<pre class="error">{escape(str(error))}</pre>')
    trace = bound.trace
    columns = [source, _labelled("expression", highlighted("\n".join(expression_tree(trace)), "text"))]
    if isinstance(mod, MaskMod):
        columns.append(_labelled(*_mask_picture(mod, bound), "narrow"))
    name, state, kernel = _kernel(mod, trace)
    return display(
        _head(mod, f"on {name}: {state}" + (", traced anew at every call" if trace.volatile else "")),
        f'<div class="columns">{"".join(columns)}</div>',
        _captures(bound),
        kernel,
    )


def kernel_html(text: str, title: str, kinds: Sequence[Kind] = ("score_mod", "mask_mod")) -> str:
    """A kernel's text: the functions that its mods became, and folded below them the whole of it.

    Args:
        text: as `Mod.source` gives it.
        title: a line above, plain text.
        kinds: those of the mods that it has.
    """
    whole = _folded(f"the whole kernel, {len(text.splitlines()):,} lines", highlighted(text, "cpp"))
    return display(f'<div class="head">{escape(title)}</div>', _generated(text, kinds), whole)


def blocks_html(mask: BlockMask) -> str:
    """A BlockMask: the picture of its first batch and head, with counts of blocks over all of them."""
    blocks = mask.blocks
    lengths = (blocks.end - blocks.first).astype(np.int64)
    partial, full = (int(lengths[blocks.state == state].sum()) for state in (PARTIAL, FULL))
    total = int(np.prod(blocks.shape))
    title = f"BlockMask {' x '.join(map(str, mask.shape))}, blocks of {' x '.join(map(str, mask.BLOCK_SIZE))}"
    counts = f"{full:,} full, {partial:,} partial, {total - full - partial:,} empty of {total:,} blocks"
    swatches = "".join(
        f'<span class="swatch {name}"></span>{name} ({meaning})&ensp; '
        for name, meaning in (("full", "no mask code"), ("partial", "masked"), ("empty", "skipped"))
    )
    several = "" if blocks.shape[:2] == (1, 1) else '<div class="quiet">batch 0, head 0:</div>'
    caption = f"<figcaption>{escape(title)}: {counts}, sparsity {mask.sparsity():.2f} %</figcaption>"
    picture = f'{several}{block_svg(blocks)}<div class="quiet">{swatches}</div>' if mask.numel() else ""
    return display(f"<figure>{caption}{picture}</figure>")


def user_source(mod: Mod) -> str:
    """The mod's source as its author wrote it; where that is not known, its expression as a function."""
    python = underlying(wrapped(mod))
    try:
        return "" if python is None else source_of(python.__code__).text
    except Untraceable:
        return ""
    except NoSource:
        try:
            return mod.trace().source()
        except TraceError:
            return ""


# ---- parts of a mod's display ----------------------------------------------------------------------------------------


def _head(mod: Mod, state: str) -> str:
    name = escape(name_of(wrapped(mod)))
    return f'<div class="head">{mod.kind} <b>{name}</b> <span class="quiet">&ensp;{escape(state)}</span></div>'


def _labelled(label: str, html: str, name: str = "") -> str:
    classes = f" class={name}" if name else ""
    return f'<div{classes}><div class="label">{escape(label)}</div>{html}</div>'


def _folded(summary: str, html: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def _captures(bound: Bound) -> str:
    trace, arrays, numbers = bound
    rows = [
        (a.name, f"array{i}", a.element, f"[{', '.join(map(str, value.shape))}]", "")
        for i, (a, value) in enumerate(zip(trace.arrays, arrays, strict=True))
    ]
    rows += [
        (n.name, f"number{i}", n.dtype, "", repr(value))
        for i, (n, value) in enumerate(zip(trace.numbers, numbers, strict=True))
    ]
    return table(("captured", "in the kernel", "dtype", "shape", "value now"), rows) if rows else ""


def _kernel(mod: Mod, trace: Trace) -> tuple[str, str, str]:
    """The backend that would run the mod, where its kernel for this mod alone is, and its text, folded."""
    backend = _backend()
    formulas = Formulas(trace.formula) if mod.kind == "score_mod" else Formulas(None, trace.formula)
    try:
        text = backend.text(KernelSpec(mods=formulas))
    except ValueError as error:  # it captures more than this backend takes
        return backend.name, "cannot run there", f'<pre class="error">{escape(str(error))}</pre>'
    try:
        state = STATES[kernel_state(backend, formulas)]
    except (CacheError, OSError) as error:
        state = f"the kernel cache cannot be read: {error}"
    if backend.name == "ops":
        return backend.name, "MLX operations, no kernel", ""
    file, kernel = next(iter(parts(text).items()))
    calls = f"print(mod.source({backend.name!r})) writes all {len(text.splitlines()):,} lines"
    below = _folded(f"{file}, which includes them; {calls}", highlighted(kernel, "cpp"))
    return backend.name, state, _folded(f"its lines in the {backend.name} kernel", _generated(text, [mod.kind]) + below)


def _backend() -> Backend:
    """The backend that flex_attention chooses without options."""
    try:
        return backend_for(chosen_name(None) or default_name())
    except (BackendUnavailable, ValueError):
        return backend_for("ops")


def _generated(text: str, kinds: Sequence[Kind]) -> str:
    """The functions that the mods became, the lines of the mods themselves marked."""
    shown = []
    for first, lines in written_by(kinds, text):
        own = highlighted("\n".join(lines), "cpp", _body(lines, kinds))
        shown.append(_labelled(f"from line {first:,} of {len(text.splitlines()):,}", own))
    return "".join(shown)


def _body(lines: list[str], kinds: Sequence[Kind]) -> range:
    """The lines inside the function of a mod, without one that only names unused arguments."""
    first = next((i for i, line in enumerate(lines) if re.search(rf"\b({'|'.join(kinds)})\(.*{{$", line)), None)
    if first is None:
        return range(0)
    return range(first + 1 + lines[first + 1].lstrip().startswith("(void)"), len(lines) - 1)


def _mask_picture(mod: MaskMod, bound: Bound) -> tuple[str, str]:
    """What it shows, and a small picture of batch 0 and head 0, long enough to show what the mask's numbers do."""
    numbers = [node.value for node in leaves(bound.trace.expr, ("const",)) if node.dtype == "int"]
    numbers += [value for value in bound.numbers if type(value) is int]
    spans = [3 * abs(value) for value in numbers] + [int(array.shape[-1]) for array in bound.arrays if array.ndim == 1]
    shortest, longest = PICTURE_LENGTHS
    length = min(max([shortest, *spans]), longest)
    length = bound.trace.array_sizes.fitting(bound.arrays, bound.numbers, length)
    try:
        cells = mask_cells(mod, length, length, 0, 0, (64, 64))
    except ValueError as error:  # it reads past the end of an array wherever it is
        return "no picture", f'<pre class="error">{escape(str(error))}</pre>'
    return f"first {length} rows and keys", states_svg(cells.states, 160, "what the mask keeps")


__all__ = ["blocks_html", "kernel_html", "mod_html", "report_html", "user_source"]
