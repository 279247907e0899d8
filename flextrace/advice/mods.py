"""What is passed for a mod and is none -> what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.kernels.scalars import shown
from flextrace.tracer import Kind
from flextrace.tracer.errors import with_article
from flextrace.tracer.nearest import nearest
from flextrace.tracer.source.signature import ARGUMENTS, PASSED_AS

from .keywords import ALIGNMENT

library: Callable[[], Mapping[str, Any]] = dict  # flex.mods by name, as flextrace/__init__.py says
AXES = ("b", "h", "q_idx", "kv_idx")


def wrong_mod(value: Any, kind: Kind, argument: str) -> TypeError:
    """The error for a `value` that is no function, where `argument` takes a mod of that kind."""
    if isinstance(value, str):
        what, remedy = repr(value), _by_name(value, kind)
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        what, remedy = _array(value), _reading(value, kind)
    else:
        what, remedy = with_article(type(value).__name__), ""
        if hasattr(value, "kv_num_blocks"):
            remedy = "pass it as block_mask, or its mask_mod where a function is taken"
        elif getattr(getattr(value, "score_mod", None), "kind", None) == "score_mod":  # a module of flextrace.nn
            remedy = f"pass its mod, {PASSED_AS['score_mod']}=... .score_mod"
        elif isinstance(value, bool):
            remedy = f"causal attention is block_mask={ALIGNMENT}"
        elif isinstance(value, (list, tuple)) and value and all(map(callable, value)):
            remedy = "masks combine by flex.and_masks(...) and flex.or_masks(...)" if kind == "mask_mod" else ""
            remedy = remedy or "write one function that calls them in turn"
    return TypeError(f"{argument} takes a {kind} function, not {what}" + (f"; {remedy}" if remedy else ""))


def _by_name(word: str, kind: Kind) -> str:
    mods = library()
    near = nearest(word, mods)
    if near is None:
        return "flex.mods has masks and biases by name"
    if near == "causal":
        return f"{'pass' if kind == 'mask_mod' else 'pass as block_mask'} {ALIGNMENT}"
    return f"did you mean flex.mods.{near}{'' if hasattr(mods[near], 'kind') else '(...)'}?"


def _array(value: Any) -> str:
    if isinstance(value, (mx.array, np.ndarray)):
        return shown(value)
    return f"{with_article(type(value).__name__)} of {value.dtype} and shape {tuple(value.shape)}"


def _reading(array: Any, kind: Kind) -> str:
    """The mod of one line that reads an array of scores or of a mask; a size of 1 broadcasts."""
    sizes, dtype = tuple(array.shape), str(array.dtype)
    is_mask = "bool" in dtype or (kind == "mask_mod" and "int" in dtype)
    if not 2 <= len(sizes) <= 4 or not ("bool" in dtype or "int" in dtype or "float" in dtype):
        return ""
    axes = [axis if size != 1 else "0" for axis, size in zip(AXES[-len(sizes) :], sizes, strict=True)]
    name = "mask" if is_mask else "bias"
    element = f"{name}[{', '.join(axes)}]"
    made: Kind = "mask_mod" if is_mask else "score_mod"
    value = f"score + {element}" if made == "score_mod" else element if "bool" in dtype else f"{element} != 0"
    ours = isinstance(array, (mx.array, np.ndarray))
    first = f"with the array {name}" if ours else f"with {name} = mx.array(...) of it"
    return f"{first}, write {PASSED_AS[made]}=lambda {', '.join(ARGUMENTS[made])}: {value}"
