"""Parameters -> mods: the masks and score functions of the literature, ready for `flex_attention`.

A mask goes to `block_mask` (or `create_block_mask`), a score function to `score_mod`. Each is a plain Python function
inside a factory, so it reads like its formula, prints (`mod.expr`) and can be called with numbers. Combine masks with
`flex.and_masks` and `flex.or_masks`. Sizes are run-time numbers: another window or canvas compiles nothing. Arrays are
kernel inputs: integers as int32, and learnable ones stay the caller's `mx.array`. What asks where a query is takes
`offset=`, the position of the first one; see `causal`, which says why.

    masks.py, windows.py, trees.py   one sequence
    packed.py, prefixes.py           many sequences laid end to end, and what they share
    neighbourhoods.py, vision.py     images and video; grids.py has the orders of their tokens
    biases.py, graphs.py             positions or pairs of nodes -> what is added to a score
    scores.py                        score -> score
    draws.py                         random numbers by position, dropout
    offsets.py                       any of them for queries that start later
"""

from .biases import alibi, alibi_slopes, relative_bias, sandwich, t5_bias
from .draws import dropout, dropout_output, uniform
from .graphs import graphormer_edge, graphormer_spatial
from .grids import morton_order, tiled_order
from .masks import block_diffusion, causal, padding
from .neighbourhoods import morton_natten, natten, sliding_tile, tiled_natten
from .packed import batchify, causal_document, document, document_ids, per_document
from .prefixes import prefix_lm, shared_prefix
from .scores import activation, mla_rope, softcap, undo_softmax
from .trees import tree_ancestor
from .vision import spatial_head, temporal_head, video_heads, vision_cross_attention
from .windows import attention_sinks, bidirectional_window, dilated_window, global_window, sliding_window

__all__ = [
    "activation",
    "alibi",
    "alibi_slopes",
    "attention_sinks",
    "batchify",
    "bidirectional_window",
    "block_diffusion",
    "causal",
    "causal_document",
    "dilated_window",
    "document",
    "document_ids",
    "dropout",
    "dropout_output",
    "global_window",
    "graphormer_edge",
    "graphormer_spatial",
    "mla_rope",
    "morton_natten",
    "morton_order",
    "natten",
    "padding",
    "per_document",
    "prefix_lm",
    "relative_bias",
    "sandwich",
    "shared_prefix",
    "sliding_tile",
    "sliding_window",
    "softcap",
    "spatial_head",
    "t5_bias",
    "temporal_head",
    "tiled_natten",
    "tiled_order",
    "tree_ancestor",
    "undo_softmax",
    "uniform",
    "video_heads",
    "vision_cross_attention",
]
