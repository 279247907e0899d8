"""Program text -> HTML with colours: by pygments where it is installed (always beside Jupyter), plain without it."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator
from html import escape

# First match counts: the head of a pygments token type, and the class of flextrace/show/html.py that colours it.
_CLASSES = (
    ("Token.Comment", "c"),
    ("Token.Keyword.Type", "t"),
    ("Token.Keyword", "k"),
    ("Token.Operator.Word", "k"),
    ("Token.Name.Decorator", "t"),
    ("Token.Name.Class", "t"),
    ("Token.Literal.Number", "n"),
    ("Token.Literal.String", "s"),
)


MOST_COLOURED = 80_000  # characters; colours double a text


def highlighted(text: str, language: str, marked: Collection[int] = ()) -> str:
    """A <pre> of the text, without colours where it is long.

    Args:
        language: "python", "cpp" or, for no colours at all, "text".
        marked: the numbers of the lines that stand out, from 0.
    """
    lines = list(_lines(text.strip("\n"), language))
    made = (f"<span class=mark>{line}\n</span>" if i in marked else f"{line}\n" for i, line in enumerate(lines))
    return f"<pre>{''.join(made)}</pre>"


def _lines(text: str, language: str) -> Iterator[str]:
    """The HTML of each line: no element goes beyond the end of a line."""
    line: list[str] = []
    for kind, token in _tokens(text, language):
        first, *others = token.split("\n")
        line.append(_coloured(kind, first))
        for other in others:
            yield "".join(line)
            line = [_coloured(kind, other)]
    yield "".join(line)


def _tokens(text: str, language: str) -> Iterator[tuple[str, str]]:
    if language == "text" or len(text) > MOST_COLOURED:
        yield "", text
        return
    try:
        pygments = importlib.import_module("pygments.lexers")
    except ImportError:
        yield "", text
        return
    lexer = pygments.get_lexer_by_name(language, stripnl=False, ensurenl=False)
    for kind, token in lexer.get_tokens(text):
        yield str(kind), token


def _coloured(kind: str, text: str) -> str:
    shown = escape(text, quote=False)
    name = next((name for head, name in _CLASSES if kind.startswith(head)), "")
    return f"<span class={name}>{shown}</span>" if name and text.strip() else shown
