"""Parameters -> mask_mod: trees of tokens, as speculative decoding verifies them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.decorators import MaskMod, mask_mod

from .arguments import known_integers, whole


def tree_ancestor(parents: Any, prefix: int = 0) -> MaskMod:
    """A token of a tree sees the prefix, its ancestors and itself: the verification mask of tree speculation.

    Nodes are numbered in depth-first order of a walk, so that the subtree of j is enter[j] <= enter < leave[j], and
    j is an ancestor of i (or i itself) where enter[j] <= enter[i] < leave[j]: two numbers per node, no table of pairs.

    Args:
        parents: integers [nodes], the parent of each token; -1 for a root; parents precede their children.
        prefix: keys before the tree that all see; query i is node i, key prefix + j is node j. Q_LEN is nodes; keys
            from prefix + nodes on are padding, which nothing sees.

    Raises:
        ValueError: a parent does not precede its child, or prefix is negative.

    Source: Miao et al., SpecInfer, arXiv 2305.09781; Cai et al., Medusa, arXiv 2401.10774.

    Example:
        >>> from flextrace import mods
        >>> mask = mods.tree_ancestor([-1, 0, 0, 1, 1, 2])
        >>> [node for node in range(6) if mask(0, 0, 4, node)]
        [0, 1, 4]
    """
    known, prefix = known_integers("parents", parents, 1, "[nodes]"), whole("prefix", prefix, at_least=0)
    nodes = len(known)
    wrong = np.flatnonzero((known < -1) | (known >= np.arange(nodes)))
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(f"parents[{at}] is {known[at]}; expected -1 for a root, or an earlier token (0 to {at - 1})")
    size = np.ones(nodes, np.int64)
    for node in range(nodes - 1, -1, -1):
        if known[node] >= 0:
            size[known[node]] += size[node]
    first, enter_at, free = 0, np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    for node in range(nodes):
        if known[node] < 0:
            enter_at[node], first = first, first + size[node]
        else:
            enter_at[node] = free[known[node]]
            free[known[node]] += size[node]
        free[node] = enter_at[node] + 1
    end = prefix + nodes
    enter, leave = mx.array(enter_at.astype(np.int32)), mx.array((enter_at + size).astype(np.int32))

    @mask_mod
    def tree_ancestor(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        in_tree = kv_idx < end
        return kv_idx < prefix or (in_tree and enter[kv_idx - prefix] <= enter[q_idx] < leave[kv_idx - prefix])

    return tree_ancestor
