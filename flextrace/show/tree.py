"""Trace -> lines of a tree for readers; what occurs more than once gets a name, and captures have the user's names.

    e0 = q_idx - kv_idx

    if
    ├─ e0 < window
    ├─ then: score
    └─ else: -inf

What fits on a line becomes one line; long trees are cut.
"""

from __future__ import annotations

from collections import Counter

from flextrace.tracer import PYTHON, Expr, Trace
from flextrace.tracer.expr.node import walk

WIDTH = 30  # characters of what stands in one line
MOST_LINES = 80


def expression_tree(trace: Trace) -> list[str]:
    """The lines of a trace's tree; at most MOST_LINES, and then how many are left out."""
    tree = _Tree(trace)
    lines: list[str] = []
    for node, name in tree.names.items():
        first, *rest = tree.lines(node)
        lines += [f"{name} = {first}", *(" " * (len(name) + 3) + line for line in rest)]
    lines += [*([""] if lines else []), *tree.lines(trace.expr)]
    if len(lines) > MOST_LINES:
        left = len(lines) - MOST_LINES + 1
        lines = [*lines[: MOST_LINES - 1], f"... {left:,} more lines; print(mod.expr) shows all as Python"]
    return lines


class _Tree:
    """names: what the nodes that occur more than once are called, arguments first."""

    def __init__(self, trace: Trace) -> None:
        self.trace: Trace = trace
        order = list(walk(trace.expr))
        uses = Counter(arg for node in order for arg in node.args)
        self.names: dict[Expr, str] = {
            node: f"e{i}" for i, node in enumerate(n for n in order if n.args and uses[n] > 1)
        }
        self.texts: dict[Expr, str | None] = {}  # None for a node whose text is too long for a line
        for node in order:
            self.texts[node] = self._text(node)

    def lines(self, node: Expr) -> list[str]:
        """The node's text, or its operation with its arguments below it."""
        text = self.texts[node]
        if text is not None:
            return [text]
        lines = [self._operation(node)]
        edges = ("", "then: ", "else: ") if node.op == "where" else ("",) * len(node.args)
        for left, arg, edge in zip(reversed(range(len(edges))), node.args, edges, strict=True):
            first, *rest = [self.names[arg]] if arg in self.names else self.lines(arg)
            lines.append(("├─ " if left else "└─ ") + edge + first)
            lines += [("│  " if left else "   ") + line for line in rest]
        return lines

    def _operation(self, node: Expr) -> str:
        if node.op == "load":
            return f"{self.trace.arrays[node.value[0]].name}[...]"
        return "if" if node.op == "where" else self._spell(node, [""] * len(node.args)).strip(" (),")

    def _text(self, node: Expr) -> str | None:
        args = []
        for arg in node.args:
            text = self.names.get(arg) or self.texts[arg]
            if text is None:
                return None
            infix = _is_infix(node) and arg not in self.names and _is_infix(arg)
            args.append(f"({text})" if infix else text)
        text = self._spell(node, args)
        return text if len(text) <= WIDTH or not node.args else None

    def _spell(self, node: Expr, args: list[str]) -> str:
        if node.op == "load":
            name: str = self.trace.arrays[node.value[0]].name
            return f"{name}[{', '.join(args)}]" if args else name
        if node.op == "param":
            number: str = self.trace.numbers[node.value].name
            return number
        if not node.args:
            return PYTHON.const(node) if node.op == "const" else str(node.value or node.op)
        pattern = PYTHON.ops[node.op]
        pattern = pattern[1:-1] if _is_infix(node) else pattern
        return pattern.format(*args)


def _is_infix(node: Expr) -> bool:
    return node.op != "load" and bool(node.args) and PYTHON.ops[node.op].startswith("(")
