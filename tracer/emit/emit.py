"""Expr -> text: statements of a target language, with a dict of format strings as the language.

A node used once is written in place, one used more often gets a name, so that nothing is computed twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..expr.node import Expr, walk

MAX_NESTING = 12  # compilers limit nested brackets, and readers do too


@dataclass(frozen=True)
class Language:
    """A target: how each op, leaf and statement is spelled.

    ops: op -> format string over its arguments; "op.dtype" (of the first argument) goes before "op".
    const, param, load: from a node (and the texts of a load's indices) to text.
    local: format of a named intermediate: name, type, value.
    heads: of languages of ranges, the range of h.
    """

    ops: Mapping[str, str]
    const: Callable[[Expr], str]
    param: Callable[[Expr], str]
    load: Callable[[Expr, list[str]], str]
    local: str = "const auto {name} = {value};"
    score: str = "score"
    heads: str = "bounds::exactly(head)"


@dataclass(frozen=True)
class Emitted:
    """Statements to run in order, and the text of the result.

    outer: the statements that do not depend on what varies in the inner loop; they come before `statements`.
    """

    statements: tuple[str, ...]
    result: str
    outer: tuple[str, ...] = ()


@dataclass(frozen=True)
class EmittedMany:
    """As `Emitted`, with the texts of several results, in the order that was asked for."""

    statements: tuple[str, ...]
    results: tuple[str, ...]
    outer: tuple[str, ...] = ()


def emit(root: Expr, language: Language, is_outer: Callable[[Expr], bool] | None = None) -> Emitted:
    """The statements that compute `root` in `language`.

    `is_outer(node)` tells what is the same for the whole inner loop: such values get a name among the outer
    statements when an inner one needs them.
    """
    statements, texts, outer = _statements((root,), language, is_outer, frozenset())
    return Emitted(statements, texts[0], outer)


def emit_many(roots: Sequence[Expr], language: Language, is_outer: Callable[[Expr], bool] | None = None) -> EmittedMany:
    """The statements that compute all `roots`, each shared part once: a function beside its derivatives.

    All results are read in the inner loop, so one that is the same for the whole of it has a name among `outer`.

    Example:
        >>> from flextrace.tracer.emit.python import PYTHON
        >>> from flextrace.tracer.expr.derivative import derivative
        >>> from flextrace.tracer.expr.node import SCORE, apply
        >>> squashed = apply("tanh", SCORE)
        >>> emit_many((squashed, derivative(squashed, SCORE)), PYTHON)
        EmittedMany(statements=('e0 = tanh(score)',), results=('e0', '1.0 - (e0 * e0)'), outer=())
    """
    statements, texts, outer = _statements(tuple(roots), language, is_outer, frozenset(roots))
    return EmittedMany(statements, texts, outer)


def _statements(
    roots: tuple[Expr, ...], language: Language, is_outer: Callable[[Expr], bool] | None, inner: frozenset[Expr]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Inner statements, the texts of the roots, outer statements. inner: the roots that the inner loop needs."""
    order = list(walk(*roots))
    uses = Counter([*roots, *(arg for node in order for arg in node.args)])
    outside = {node for node in order if is_outer is not None and is_outer(node)}
    carried = {arg for node in order if node not in outside for arg in node.args if arg in outside} | (inner & outside)
    text: dict[Expr, str] = {}
    depth: dict[Expr, int] = {}
    statements: list[str] = []
    outer: list[str] = []
    for node in order:
        args = [text[arg] for arg in node.args]
        text[node] = _spell(node, args, language)
        depth[node] = 1 + max((depth[arg] for arg in node.args), default=0)
        reads = bool(node.args) or node.op in ("load", "param")
        shared = bool(node.args) and (uses[node] > 1 or (depth[node] >= MAX_NESTING and node not in roots))
        if shared or (reads and node in carried):
            prefix, block = ("u", outer) if node in outside else ("e", statements)
            name = f"{prefix}{len(block)}"
            block.append(language.local.format(name=name, value=_bare(text[node])))
            text[node], depth[node] = name, 1
    return tuple(statements), tuple(_bare(text[root]) for root in roots), tuple(outer)


def _spell(node: Expr, args: list[str], language: Language) -> str:
    if node.op == "load":
        return language.load(node, args)
    if node.args:
        dtype = node.args[-1].dtype
        pattern = language.ops.get(f"{node.op}.{dtype}") or language.ops[node.op]
        return pattern.format(*args)
    if node.op == "const":
        return language.const(node)
    if node.op == "param":
        return language.param(node)
    return language.score if node.op == "score" else str(node.value)


def _bare(text: str) -> str:
    """The text without the one pair of parentheses around the whole, if there is one."""
    if not text.startswith("("):
        return text
    level = 0
    for position, character in enumerate(text):
        level += (character == "(") - (character == ")")
        if level == 0:
            return text[1:-1] if position == len(text) - 1 else text
    return text
