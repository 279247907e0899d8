"""Parameters -> score_mod: learned numbers for pairs of nodes of a graph, added to the score."""

from __future__ import annotations

from typing import Any

from flextrace.decorators import ScoreMod, score_mod

from .arguments import integers, reals


def graphormer_spatial(table: Any, distances: Any) -> ScoreMod:
    """A learned number for each shortest-path length: score + table[h, distances[b, q_idx, kv_idx]].

    Args:
        table: floats [query_heads, lengths], which may be learnable.
        distances: integers [B, nodes, nodes] or [nodes, nodes], each below `lengths` (cap them; give unreachable
            pairs a length of their own).

    Raises:
        ValueError: a shape does not fit.

    Source: Ying et al., Do Transformers Really Perform Badly for Graph Representation? (Graphormer), arXiv 2106.05234.

    Example:
        >>> from flextrace import mods
        >>> mods.graphormer_spatial([[0.0, -1.0, -2.0]], [[0, 1], [1, 0]]).expr
        score + array1[h, array0[q_idx, kv_idx]]
    """
    table = reals("table", table, (2,), "[query_heads, lengths]")
    distances = integers("distances", distances, (2, 3), "[B, nodes, nodes] or [nodes, nodes]")

    @score_mod
    def graphormer_spatial(score: float, b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        pairs = distances[b] if distances.ndim == 3 else distances
        return score + table[h, pairs[q_idx, kv_idx]]

    return graphormer_spatial


def graphormer_edge(table: Any, edges: Any, steps: Any) -> ScoreMod:
    """The mean of learned numbers along the shortest path, by place on the path and kind of edge.

    n = steps[b, q_idx, kv_idx];  score + sum over i < n of table[h, i, edges[b, q_idx, kv_idx, i]] / max(n, 1)

    Args:
        table: floats [query_heads, K, kinds], which may be learnable.
        edges: integers [B, nodes, nodes, K] or [nodes, nodes, K], kind of each edge on the path, cut after K.
        steps: integers [B, nodes, nodes] or [nodes, nodes], how many of those K count (0 where there is no path).

    Raises:
        ValueError: a shape does not fit.

    Source: Ying et al., Do Transformers Really Perform Badly for Graph Representation? (Graphormer), arXiv 2106.05234;
    its dot product of edge feature and weight is one number here, as edges are kinds.

    Example:
        >>> from flextrace import mods
        >>> bias = mods.graphormer_edge([[[1.0, 3.0], [5.0, 7.0]]], [[[0, 0], [1, 0]]], [[0, 2]])
        >>> float(bias(0.0, 0, 0, 0, 0)), float(bias(0.0, 0, 0, 0, 1))
        (0.0, 4.0)
    """
    table = reals("table", table, (3,), "[query_heads, K, kinds]")
    edges = integers("edges", edges, (3, 4), "[B, nodes, nodes, K] or [nodes, nodes, K]")
    steps = integers("steps", steps, (2, 3), "[B, nodes, nodes] or [nodes, nodes]")
    if edges.shape[:-1] != steps.shape or edges.shape[-1] != table.shape[1]:
        raise ValueError(
            f"edges has shape {edges.shape}, steps {steps.shape}, table {table.shape}; expected edges of steps' "
            "shape and one axis more, of K numbers, where table is [query_heads, K, kinds]"
        )

    @score_mod
    def graphormer_edge(score: float, b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        count = steps[b, q_idx, kv_idx] if steps.ndim == 3 else steps[q_idx, kv_idx]
        kinds = edges[b, q_idx, kv_idx] if steps.ndim == 3 else edges[q_idx, kv_idx]
        total = 0.0
        for step in range(table.shape[1]):
            if step < count:
                total += table[h, step, kinds[step]]
        return score + total / max(count, 1)

    return graphormer_edge
