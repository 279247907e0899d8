"""Keyword arguments that a function does not have -> a TypeError that names the right one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from flextrace.tracer.errors import brief_in_a_notebook
from flextrace.tracer.nearest import nearest

ALIGNMENT = (
    "flex.mods.causal, under which query i sees keys 0 to i; where the queries are the last of the keys, as with a "
    "cache, pass flex.mods.causal(offset=kv_len - q_len)"
)
_MASK = "pass a mask_mod, or what create_block_mask gives, as block_mask="
_DEVICE = "leave it out: arrays of MLX are on no device"
OF_ATTENTION: dict[str, str] = {  # what other libraries call it, or have, -> what to write for flex_attention
    **dict.fromkeys("mask mask_mod mask_fn".split(), _MASK),
    **dict.fromkeys(
        "attn_mask attention_mask".split(),
        "write block_mask=lambda b, h, q_idx, kv_idx: mask[q_idx, kv_idx] for an array of bools, or "
        "score_mod=lambda score, b, h, q_idx, kv_idx: score + mask[q_idx, kv_idx] for numbers that are added",
    ),
    **dict.fromkeys(
        "bias attn_bias".split(), "write score_mod=lambda score, b, h, q_idx, kv_idx: score + bias[q_idx, kv_idx]"
    ),
    **dict.fromkeys("is_causal causal".split(), f"write block_mask={ALIGNMENT}"),
    **dict.fromkeys("q queries".split(), "write query="),
    **dict.fromkeys("k keys".split(), "write key="),
    **dict.fromkeys("v values".split(), "write value="),
    **dict.fromkeys("sm_scale softmax_scale scaling".split(), "write scale="),
    **dict.fromkeys("softcap logit_cap logits_soft_cap".split(), "write score_mod=flex.mods.softcap(...)"),
    **dict.fromkeys("window window_size sliding_window".split(), "write block_mask=flex.mods.sliding_window(...)"),
    **dict.fromkeys("alibi alibi_slopes".split(), "write score_mod=flex.mods.alibi(...)"),
    **dict.fromkeys("sink s_aux".split(), "write sinks="),
    "backend": 'write kernel_options={"BACKEND": ...}',
    "num_threads": 'write kernel_options={"NUM_THREADS": ...}',
    "BLOCK_SIZE": "it belongs to create_block_mask, which makes a block_mask",
    "max_scores": "write return_aux=flex.AuxRequest(max_scores=True)",
    "lse": "write return_lse=True",
    "device": _DEVICE,
}
OF_BLOCK_MASK: dict[str, str] = {  # torch's, and what is near -> what to write where a mask is made
    **dict.fromkeys("mod_fn mask_fn mask block_mask".split(), "write mask_mod="),
    "device": _DEVICE,
    "_compile": "leave it out: blocks follow from the mask's bounds, and no dense mask is made",
    "compute_q_blocks": "leave it out: q_indices and its kin are made when they are asked for",
}
P = ParamSpec("P")
R = TypeVar("R")


def knows(remedies: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function whose wrong keyword arguments have a remedy; its signature stays as it is. In a notebook
    what flextrace has to say of its arguments is shown without flextrace's own lines.

    Args:
        remedies: what to write, after a semicolon, by the name of an argument that the function does not have.

    Example:
        >>> @knows({"colour": "write color="})
        ... def paint(color: str = "red") -> str:
        ...     return color
        >>> paint(colour="blue")
        Traceback (most recent call last):
        TypeError: paint() has no argument 'colour'; write color=
        >>> inspect.signature(paint)
        <Signature (color: 'str' = 'red') -> 'str'>
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = frozenset(inspect.signature(function).parameters)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                if not names.issuperset(kwargs):
                    unknown = next(name for name in kwargs if name not in names)
                    raise TypeError(f"{function.__name__}() has no argument {unknown!r}; {_remedy(unknown)}")
                return function(*args, **kwargs)
            except Exception as error:
                brief_in_a_notebook(error)
                raise

        def _remedy(unknown: str) -> str:
            near = nearest(unknown, names)
            return remedies.get(unknown) or (f"did you mean {near}=?" if near else f"it takes {', '.join(order)}")

        order = list(inspect.signature(function).parameters)
        return checked

    return decorate
