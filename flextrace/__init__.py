"""FlexAttention for MLX: a plain Python score or mask function becomes a fused attention kernel."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from . import mlx_build  # noqa: F401  # first: it says what to install where MLX does not load

# isort: split
from flextrace.cache import CacheError, CacheWarning
from flextrace.kernels import BackendUnavailable, GradientError, Int8Rows, QKQuant, notebooks
from flextrace.tracer import Expr, TraceError

from .advice import mods as wrong_mods
from .attention import AuxOutput, AuxRequest, flex_attention
from .block_mask import BlockMask, BlockRanges, and_masks, create_block_mask, create_mask, noop_mask, or_masks
from .decorators import MaskMod, ScoreMod, mask_mod, score_mod
from .int8 import Int8KV
from .merge import merge_attention
from .notices import FlextraceWarning

if TYPE_CHECKING:
    from . import mods, nn, simulator, stages
    from .show import figures as visualize

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
    "merge_attention",
    "mods",
    "nn",
    "noop_mask",
    "or_masks",
    "score_mod",
    "simulator",
    "stages",
    "visualize",
]

_LATER = {  # the public modules that `import flextrace` does not import
    "mods": "flextrace.mods",
    "nn": "flextrace.nn",
    "simulator": "flextrace.simulator",
    "stages": "flextrace.stages",
    "visualize": "flextrace.show.figures",
}


def __getattr__(name: str) -> Any:
    """The modules of `_LATER`, imported when first used: most programs never do."""
    if name in _LATER:
        return importlib.import_module(_LATER[name])
    raise AttributeError(f"module 'flextrace' has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def _html_of(thing: Any) -> str:
    from .show.mods import html_of  # notebooks only

    return html_of(thing)


def _library() -> dict[str, Any]:
    from . import mods

    return {name: getattr(mods, name) for name in mods.__all__}


# Mods are shown by pictures and named by the library, which are made of mods: both are said here, from above.
notebooks.painter = _html_of
wrong_mods.library = _library


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext flextrace`: the magics of `flextrace.show.notebook`."""
    importlib.import_module("flextrace.show.notebook").load_ipython_extension(ipython)
