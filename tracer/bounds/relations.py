"""Expr -> Expr for bounds: terms that two operands share cancel, where no int32 can have wrapped.

Ranges forget that both sides of `q - kv < q + h` move together. Here such a node keeps its operands and gets, as one
more argument, their difference (or sum) as an affine form over opaque terms, in which the shared ones are added up:

    lt(a, b)   ->  lt_by_difference(a, b, a - b)      also le, eq, ne
    add(a, b)  ->  meet(add(a, b), a + b)             also sub
    mul(a, a)  ->  square(a)
    exp(x)     ->  score        and every other float of which nothing can be said: one leaf that is unknown

The affine form consists of `wide_add`, `wide_sub` and `wide_mul`, which never wrap. It holds where no step of the
operands has wrapped: their ranges tell, as one that leaves int32 becomes all of int32, and stays so under +, -, *.
"""

from __future__ import annotations

from typing import NamedTuple

from ..expr.node import COMPARISONS, SCORE, Expr, const, walk
from .rules import has_rule

MAX_TERMS = 16
MAX_FACTOR = 2**16  # with MAX_TERMS: every partial sum fits int64


class Affine(NamedTuple):
    """constant + the sum of factor * term."""

    factors: dict[Expr, int]
    constant: int

    def plus(self, other: Affine, sign: int = 1) -> Affine:
        factors = dict(self.factors)
        for term, factor in other.factors.items():
            factors[term] = factors.get(term, 0) + sign * factor
        return Affine(factors, self.constant + sign * other.constant)

    def times(self, factor: int) -> Affine:
        return Affine({term: factor * own for term, own in self.factors.items()}, factor * self.constant)

    def fits(self) -> bool:
        factors = self.factors.values()
        return len(factors) <= MAX_TERMS and all(abs(f) <= MAX_FACTOR for f in factors) and abs(self.constant) < 2**31


def relate(root: Expr) -> Expr:
    """`root` with the relations between operands written out; only bounds understand the result."""
    new: dict[Expr, Expr] = {}
    forms: dict[Expr, Affine] = {}
    for node in walk(root):
        args = tuple(new[arg] for arg in node.args)
        if node.op == "mul" and args[0] is args[1] and node.dtype == "int":
            new[node] = Expr("square", "int", args[:1])
        elif node.dtype == "float" and args and node.op != "load" and not has_rule(node):
            new[node] = SCORE
        else:
            new[node] = Expr(node.op, node.dtype, args, node.value)
        if node.dtype == "int":
            forms[node] = _form(node, forms)
        compares = node.op in COMPARISONS and node.args[0].dtype == "int"
        if not compares and (node.op not in ("add", "sub") or node.dtype != "int"):
            continue
        a, b = (forms[arg] for arg in node.args)
        together = a.plus(b, 1 if node.op == "add" else -1)
        if not (a.factors.keys() & b.factors.keys() and together.fits()):
            continue
        exact = _as_expr(together, new)
        if compares:
            new[node] = Expr(f"{node.op}_by_difference", "bool", (*args, exact))
        else:
            new[node] = Expr("meet", "int", (new[node], exact))
    return new[root]


def _form(node: Expr, forms: dict[Expr, Affine]) -> Affine:
    """The affine form of an int node; itself as an opaque term where it has none."""
    args = [forms.get(arg) for arg in node.args]
    form: Affine | None = None
    if node.op == "const":
        form = Affine({}, node.value)
    elif node.op in ("add", "sub"):
        form = args[0].plus(args[1], 1 if node.op == "add" else -1)  # type: ignore[union-attr, arg-type]
    elif node.op == "neg":
        form = args[0].times(-1)  # type: ignore[union-attr]
    elif node.op == "mul":
        for x, y in (node.args, node.args[::-1]):
            if y.op == "const":
                form = forms[x].times(y.value)
    return form if form is not None and form.fits() else Affine({node: 1}, 0)


def _as_expr(form: Affine, new: dict[Expr, Expr]) -> Expr:
    total = const(form.constant)
    for term, factor in form.factors.items():
        if factor == 0:
            continue
        size = new[term] if abs(factor) == 1 else Expr("wide_mul", "int", (new[term], const(abs(factor))))
        total = Expr("wide_add" if factor > 0 else "wide_sub", "int", (total, size))
    return total
