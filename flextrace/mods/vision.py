"""Parameters -> mask_mod: heads of video models, and text that attends to images."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.decorators import MaskMod, as_mod, mask_mod

from .arguments import flags, known_integers, whole
from .offsets import mask_at


def spatial_head(frame: int, frames: int, prompt: int = 0, first_frame: bool = False) -> MaskMod:
    """A video head that looks around in space: |q_idx - kv_idx| < frame * frames, and the prompt.

    Args:
        frame: tokens of a frame; a token of frame t at place s has index prompt + t * frame + s.
        frames: width of the band, in frames.
        prompt: text tokens in front; they see all and are seen by all.
        first_frame: the first frame is seen by all too.

    Raises:
        ValueError: a size is out of range.

    Source: Xi et al., Sparse VideoGen, arXiv 2502.01776.

    Example:
        >>> from flextrace import mods
        >>> mask = mods.spatial_head(frame=4, frames=1, prompt=2)
        >>> [kv_idx for kv_idx in range(18) if mask(0, 0, 10, kv_idx)]
        [0, 1, 7, 8, 9, 10, 11, 12, 13]
    """
    frame, prompt = whole("frame", frame), whole("prompt", prompt, at_least=0)
    band, always = frame * whole("frames", frames), prompt + (frame if first_frame else 0)

    @mask_mod
    def spatial_head(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
        return q_idx < prompt or kv_idx < always or -band < q_idx - kv_idx < band

    return spatial_head


def temporal_head(frame: int, reach: int = 1, prompt: int = 0) -> MaskMod:
    """A video head that looks through time at its place: |q place - kv place| < reach, and the prompt.

    The place of a token is its position inside its frame, (index - prompt) % frame.

    Args:
        frame: tokens of a frame.
        reach: 1 is the same place in every frame; Sparse VideoGen takes width * frame // number of frames.
        prompt: text tokens in front; they see all and are seen by all.

    Raises:
        ValueError: a size is out of range.

    Source: Xi et al., Sparse VideoGen, arXiv 2502.01776.

    Example:
        >>> from flextrace import mods
        >>> mask = mods.temporal_head(frame=4, prompt=2)
        >>> [kv_idx for kv_idx in range(18) if mask(0, 0, 7, kv_idx)]
        [0, 1, 3, 7, 11, 15]
    """
    frame, reach, prompt = whole("frame", frame), whole("reach", reach), whole("prompt", prompt, at_least=0)

    @mask_mod
    def temporal_head(b: int, h: int, q_idx: int, kv_idx: int) -> bool:
        distance = (q_idx - prompt) % frame - (kv_idx - prompt) % frame
        return q_idx < prompt or kv_idx < prompt or -reach < distance < reach

    return temporal_head


def video_heads(is_temporal: Any, spatial: MaskMod, temporal: MaskMod) -> MaskMod:
    """One of two masks by head: temporal where is_temporal[h], spatial elsewhere.

    Args:
        is_temporal: bools [query_heads], the kind of each head.
        spatial, temporal: masks, such as `spatial_head` and `temporal_head`.

    Raises:
        ValueError: is_temporal is not a bool array of one axis.
        TypeError: spatial or temporal is no mask_mod.

    Source: Xi et al., Sparse VideoGen, arXiv 2502.01776.

    Example:
        >>> from flextrace import mods
        >>> mask = mods.video_heads([False, True], mods.spatial_head(4, frames=1), mods.temporal_head(4))
        >>> [[kv_idx for kv_idx in range(16) if mask(0, head, 5, kv_idx)] for head in (0, 1)]
        [[2, 3, 4, 5, 6, 7, 8], [1, 5, 9, 13]]
    """
    is_temporal = flags("is_temporal", is_temporal, (1,), "[query_heads]")
    in_space, in_time = as_mod(spatial, MaskMod, "spatial"), as_mod(temporal, MaskMod, "temporal")

    @mask_mod
    def video_heads(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        return in_time(b, h, q_idx, kv_idx) if is_temporal[h] else in_space(b, h, q_idx, kv_idx)

    return video_heads


def vision_cross_attention(intervals: Any, image_tokens: int, *, offset: int | mx.array | None = None) -> MaskMod:
    """Text attends to the images that it belongs to: start[image] <= q_idx < stop[image], image = kv_idx // tokens.

    Args:
        intervals: integers [images, 2], for each image the text positions (start, stop) that see it.
        image_tokens: keys of one image; keys from images * image_tokens on are padding, which nothing sees.
        offset: position of the first query, an int or integers [] or [B] in an mx.array; see `causal`.

    Raises:
        ValueError: intervals has another shape, or image_tokens is not positive.

    Source: Alayrac et al., Flamingo, arXiv 2204.14198.

    Example:
        >>> import flextrace as flex
        >>> mask = flex.mods.vision_cross_attention([[0, 4], [4, 8]], image_tokens=2)
        >>> print(flex.create_block_mask(mask, None, None, 8, 4, BLOCK_SIZE=2).to_string())
        #.
        #.
        .#
        .#
    """
    known, image_tokens = known_integers("intervals", intervals, 2, "[images, 2]"), whole("image_tokens", image_tokens)
    if known.shape[1] != 2:
        raise ValueError(
            f"intervals has shape {known.shape}; expected [images, 2]: start and stop of each image's text"
        )
    start, stop = mx.array(known[:, 0].astype(np.int32)), mx.array(known[:, 1].astype(np.int32))
    keys = len(known) * image_tokens

    @mask_mod
    def vision_cross_attention(b: int, h: int, q_idx: int, kv_idx: int) -> Any:
        image = kv_idx // image_tokens
        return kv_idx < keys and start[image] <= q_idx < stop[image]

    return mask_at(vision_cross_attention, offset)
