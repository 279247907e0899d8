"""Expr -> the reads of floating arrays in it, each with its derivative and the pattern of the elements that it reads.

The gradient of an element is a sum over all positions that read it. The pattern says which positions these can be, and
so how a kernel sums them without atomics, in a fixed order.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from .derivative import derivative, gradient_sites
from .node import INDICES, KV_IDX, Q_IDX, Expr, walk


class Pattern(enum.Enum):
    """Which positions of one batch and head read the same element, by what its indices depend on besides `b` and `h`.

    ROW: on q_idx at most, in any way: `a[h]`, `a[q_idx]`, `a[document[q_idx]]`, `a` of no dimensions.
    COLUMN: on kv_idx, in any way: `a[h, kv_idx]`.
    DIAGONAL: on q_idx - kv_idx, in any way: `a[h, abs(q_idx - kv_idx)]`, `a[bucket[q_idx - kv_idx + 7], h]`.
    DENSE: q_idx itself is one index and kv_idx itself another: `a[h, q_idx, kv_idx]`, each position its own element.
    TABLE: whatever else: `a[x[q_idx], y[kv_idx]]`, `a[q_idx + kv_idx]`, indices made of the score.
    """

    ROW = "row"
    COLUMN = "column"
    DIAGONAL = "diagonal"
    DENSE = "dense"
    TABLE = "table"


@dataclass(frozen=True, eq=False)
class Site:
    """One read of a floating array whose value moves the score.

    load: the node that reads. slope: the derivative with respect to it.
    varies: of "b", "h", "q_idx", "kv_idx" and "score", those that its indices depend on.
    axes: index -> the axis of the array that is indexed by just this index: {"h": 0, "kv_idx": 2}.

    A kernel clamps indices. So a DENSE element is its position's own only within the array; see `is_own`.
    """

    load: Expr
    slope: Expr
    pattern: Pattern
    varies: frozenset[str]
    axes: dict[str, int]

    @property
    def slot(self) -> int:
        """The array's place among the captured ones."""
        return int(self.load.value[0])

    @property
    def element(self) -> str:
        """The array's element type: "float16", ..."""
        return str(self.load.value[1])

    def is_own(self, indices: Sequence[str], shape: Sequence[int], sizes: Sequence[int]) -> bool:
        """Whether positions that differ in one of `indices` never read the same element, so that nothing is summed.

        Args:
            indices: some of "b", "h", "q_idx", "kv_idx".
            shape: the array's.
            sizes: batch, query heads, q_len, kv_len of the call.

        Example:
            >>> from flextrace.tracer.expr.node import KV_IDX, Q_IDX, SCORE, H, apply
            >>> (site,) = sites(apply("add", SCORE, apply("load", H, Q_IDX, KV_IDX, value=(0, "float32"))))
            >>> site.is_own(("h", "q_idx", "kv_idx"), (4, 16, 16), (1, 4, 16, 16))
            True
            >>> site.is_own(("b", "h", "q_idx", "kv_idx"), (4, 16, 16), (2, 4, 16, 16))  # both batches
            False
        """
        count = dict(zip(INDICES, sizes, strict=True))
        return all(count[name] <= (shape[self.axes[name]] if name in self.axes else 1) for name in indices)


def sites(expr: Expr) -> tuple[Site, ...]:
    """The reads of floating arrays on which an expression depends by more than a step, arguments first.

    Example:
        >>> from flextrace.tracer.expr.node import KV_IDX, Q_IDX, SCORE, H, apply
        >>> slope = apply("load", H, value=(0, "float32"))
        >>> bias = apply("load", H, apply("abs", apply("sub", KV_IDX, Q_IDX)), value=(1, "float16"))
        >>> for site in sites(apply("add", apply("mul", SCORE, slope), bias)):
        ...     print(site.load, site.slope, site.pattern.name, site.axes)
        array0[h] score ROW {'h': 0}
        array1[h, abs((kv_idx - q_idx))] 1.0 DIAGONAL {'h': 0}
    """
    return tuple(
        Site(load, derivative(expr, load), pattern_of(load), _varies(load), _axes(load))
        for load in gradient_sites(expr)
    )


def pattern_of(load: Expr) -> Pattern:
    """The pattern of one read, by its indices."""
    varies = _varies(load)
    if varies.isdisjoint(("kv_idx", "score")):
        return Pattern.ROW
    if varies.isdisjoint(("q_idx", "score")):
        return Pattern.COLUMN
    if all(share == 0 for share in _shares(load)):
        return Pattern.DIAGONAL
    moving = [arg for arg in load.args if not arg.varies <= {"b", "h"}]
    return Pattern.DENSE if moving in ([Q_IDX, KV_IDX], [KV_IDX, Q_IDX]) else Pattern.TABLE


def _varies(load: Expr) -> frozenset[str]:
    return frozenset[str]().union(*(arg.varies for arg in load.args))


def _axes(load: Expr) -> dict[str, int]:
    return {arg.value: axis for axis, arg in enumerate(load.args) if arg.op == "index"}


# ---- differences of positions -------------------------------------------------------------------------------------

_ALL = 2**32  # ints wrap: what follows is arithmetic modulo this, which sums, differences and multiples all keep to
Share = int | None


def _shares(load: Expr) -> list[Share]:
    """The share of each index of a load: m, where its value is m * kv_idx + f(b, h, q_idx - kv_idx); else None.

    The share of q_idx is 1, as q_idx is kv_idx + (q_idx - kv_idx).
    """
    shares: dict[Expr, Share] = {}
    for node in walk(*load.args):
        shares[node] = _share(node, [shares[arg] for arg in node.args])
    return [shares[arg] for arg in load.args]


def _share(node: Expr, of_args: list[Share]) -> Share:
    if node in (Q_IDX, KV_IDX):
        return 1
    if node.op == "score" or None in of_args:
        return None
    if not any(of_args):
        return 0  # a function of what depends on the difference depends on it, too
    share = _multiple(node, [share or 0 for share in of_args])
    return None if share is None else share % _ALL


def _multiple(node: Expr, of_args: list[int]) -> int | None:
    """The share of a node some of whose arguments have one."""
    first, last = of_args[0], of_args[-1]
    if node.op in ("eq", "ne") and first == last:
        return 0  # whether a difference is 0, where ints wrap too
    if node.op in ("lt", "le", "min", "max") and all(arg in (Q_IDX, KV_IDX) for arg in node.args):
        return 0 if node.dtype == "bool" else 1  # positions themselves never wrap
    if node.op == "where" and of_args[1] == last:
        return last
    if node.dtype != "int":
        return None
    if node.op in ("add", "sub"):
        return first + (last if node.op == "add" else -last)
    if node.op in ("neg", "bit_not"):
        return -first
    if node.op == "mul" and node.args[1].op == "const":
        return first * int(node.args[1].value)
    if node.op == "shl" and node.args[1].op == "const" and 0 <= node.args[1].value < 32:
        return first << int(node.args[1].value)
    return None
