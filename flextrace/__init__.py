"""FlexAttention for MLX: a plain Python score or mask function becomes a fused attention kernel."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from . import mlx_build  # noqa: F401  # first: it says what to install where MLX does not load

# isort: split
from flextrace.cache import CacheError, CacheWarning
from flextrace.kernels import BackendUnavailable, Int8Rows, QKQuant, notebooks
from flextrace.tracer import Expr, TraceError

from . import wrong_mods
from .attention import AuxOutput, AuxRequest, flex_attention
from .block_input import BlockRanges
from .block_mask import BlockMask
from .build_mask import create_block_mask, create_mask
from .gradient import GradientError
from .kv_cache import Int8KV
from .masks import and_masks, or_masks
from .mod import MaskMod, ScoreMod, mask_mod, score_mod
from .notices import FlextraceWarning
from .views import noop_mask

if TYPE_CHECKING:
    from . import mods, simulator, visualize

__version__ = "0.1.0"
__all__ = [
    "AuxOutput",
    "AuxRequest",
    "BackendUnavailable",
    "BlockMask",
    "BlockRanges",
    "CacheError",
    "CacheWarning",
    "Expr",
    "FlextraceWarning",
    "GradientError",
    "Int8KV",
    "Int8Rows",
    "MaskMod",
    "QKQuant",
    "ScoreMod",
    "TraceError",
    "and_masks",
    "create_block_mask",
    "create_mask",
    "flex_attention",
    "mask_mod",
    "mods",
    "noop_mask",
    "or_masks",
    "score_mod",
    "simulator",
    "visualize",
]


def __getattr__(name: str) -> Any:
    """`flex.mods`, `flex.simulator` and `flex.visualize`, imported when first used: most programs never do."""
    if name in ("mods", "simulator", "visualize"):
        return importlib.import_module(f"flextrace.{name}")
    raise AttributeError(f"module 'flextrace' has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def _html_of(thing: Any) -> str:
    from .displays import html_of  # notebooks only

    return html_of(thing)


def _library() -> dict[str, Any]:
    from . import mods

    return {name: getattr(mods, name) for name in mods.__all__}


# Mods are shown by pictures and named by the library, which are made of mods: both are said here, from above.
notebooks.painter = _html_of
wrong_mods.library = _library


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext flextrace`: the magics of `flextrace.jupyter`."""
    importlib.import_module("flextrace.jupyter").load_ipython_extension(ipython)
