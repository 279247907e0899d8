"""What cannot be traced -> an error that shows the user's line, a caret, the reason and the remedy."""

from __future__ import annotations

import dis
import linecache
import sys
import traceback
import types
from dataclasses import dataclass, field
from typing import Any

NOT_OF_USER = ("flextrace", "IPython", "ipykernel")
RAISE = dis.opmap["RAISE_VARARGS"]  # what a raise statement compiles to
SPELT = ("mx", "mlx", "nd", "np", "nn")  # their first letter is read out: em, en
YOU = ("uint", "ufunc", "user", "uni", "uuid", "use", "one")  # they begin with a vowel that is none to the ear


@dataclass(frozen=True)
class Place:
    """A span of the user's source: 1-based line, 0-based columns.

    text: the line as it was when the function was read; None for what the file has now.
    columns: those of the source where `text` is its instructions; 0-based, the second is behind the span.
    """

    filename: str
    function: str
    line: int
    column: int = 0
    end_column: int | None = None
    text: str | None = None
    columns: tuple[int, int] | None = None

    def excerpt(self) -> str:
        text = linecache.getline(self.filename, self.line) if self.text is None else self.text
        text = text.rstrip("\n")
        if not text.strip():
            return ""
        # ast columns count UTF-8 bytes; the caret counts characters.
        start = len(text.encode()[: self.column].decode(errors="ignore"))
        end = len(text)
        if self.end_column is not None:
            end = len(text.encode()[: self.end_column].decode(errors="ignore"))
        indent = len(text) - len(text.lstrip())
        start = max(start, indent)
        caret = " " * (start - indent) + "^" * max(1, end - start)
        return f"    {text.strip()}\n    {caret}"

    def __str__(self) -> str:
        columns = "" if self.columns is None else f", columns {self.columns[0] + 1} to {self.columns[1]}"
        head = f"  {shown_file(self.filename)}, line {self.line}{columns}, in {self.function}"
        excerpt = self.excerpt()
        return f"{head}\n{excerpt}" if excerpt else head


def shown_file(filename: str) -> str:
    """A file as Python's tracebacks name it, and a notebook's cell as IPython's do: Cell In[3]."""
    shell = _shell()
    cell = None if shell is None else shell.compile.format_code_name(filename)
    return f'File "{filename}"' if cell is None else " ".join(cell)


def _shell() -> Any:
    """The IPython that runs this process, or None."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def with_article(noun: str) -> str:
    """A noun or the name of a type after "a" or "an", as it is read out.

    Example:
        >>> with_article("array"), with_article("uint8"), with_article("ndarray"), with_article("mx.array")
        ('an array', 'a uint8', 'an ndarray', 'an mx.array')
    """
    word = noun.lower()
    vowel = word.startswith(SPELT) or (word[:1] in tuple("aeiou") and not word.startswith(YOU))
    return f"{'an' if vowel else 'a'} {noun}"


class Untraceable(Exception):
    """Raised deep in the tracer with a reason and a remedy; the reader adds the places, outermost call first."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason: str = reason
        self.remedy: str = remedy
        self.places: list[Place] = []


class Brief(Exception):
    """An error that a notebook shows as the user's own lines and the message.

    IPython asks it for its traceback. `%xmode Verbose`, and any other than the default, then `%tb`, show all of it.
    """

    def _render_traceback_(self) -> list[str]:
        return _brief_lines(self)


def brief_in_a_notebook(error: Exception) -> None:
    """Let IPython show an error as it shows a `Brief`, if a raise statement of flextrace itself raised it. One that
    comes out of MLX, of the user's code or of an assertion keeps its traceback; so do all where no IPython runs."""
    last = error.__traceback__
    if _shell() is None or last is None or isinstance(error, AssertionError):
        return
    while last.tb_next is not None:
        last = last.tb_next
    frame = last.tb_frame
    if _package(frame) == "flextrace" and frame.f_code.co_code[last.tb_lasti] == RAISE:
        error.__dict__["_render_traceback_"] = types.MethodType(_brief_lines, error)


def _package(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _brief_lines(error: BaseException) -> list[str]:
    shell = _shell()
    if shell is None:
        return traceback.format_exception(error)
    if shell.InteractiveTB.mode != "Context":
        whole: list[str] = shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__)
        return whole
    lines = []
    for frame, number in traceback.walk_tb(error.__traceback__):
        if _package(frame) not in NOT_OF_USER:
            filename = frame.f_code.co_filename
            text = linecache.getline(filename, number).strip()
            lines += [f"{shown_file(filename)}, line {number}, in {frame.f_code.co_name}", f"----> {text}"]
    return [*lines, "", f"{type(error).__name__}: {error}", "", "(the rest: %xmode Verbose, then %tb)"]


@dataclass(eq=False)
class TraceError(Brief):
    """A score_mod or mask_mod that cannot become a kernel.

    Attributes:
        mod: name of the decorated function.
        reason: what went wrong, in one sentence.
        remedy: what to write instead.
        places: the user's source spans, outermost call first.

    Example:
        >>> import flextrace as flex, mlx.core as mx
        >>> @flex.mask_mod
        ... def until_end(b, h, q_idx, kv_idx):
        ...     while kv_idx > 0:
        ...         kv_idx -= 1
        ...     return kv_idx == 0
        >>> until_end.expr                      # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        flextrace.tracer.errors.TraceError: cannot trace until_end: ...
    """

    mod: str
    reason: str
    remedy: str
    places: list[Place] = field(default_factory=list)

    def __str__(self) -> str:
        where = "\n".join(str(place) for place in self.places)
        lines = [f"cannot trace {self.mod}: {self.reason}", where, f"Remedy: {self.remedy}"]
        return "\n".join(line for line in lines if line)
