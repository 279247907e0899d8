"""Python function -> expression tree: reading, simplifying, evaluating and printing score_mods and mask_mods.

No MLX operation runs here, no kernel is known, no file is written.
"""

from .captures import ArrayCapture, NumberCapture, Path
from .emit import Emitted, Language, emit, show
from .errors import Place, TraceError, Untraceable
from .evaluate import evaluate
from .expr import OPS, Expr, leaves
from .simplify import simplify
from .spellings import CPP, METAL, PYTHON
from .trace import Kind, Trace, Traces, count_parameters, trace, underlying

__all__ = [
    "CPP",
    "METAL",
    "OPS",
    "PYTHON",
    "ArrayCapture",
    "Emitted",
    "Expr",
    "Kind",
    "Language",
    "NumberCapture",
    "Path",
    "Place",
    "Trace",
    "TraceError",
    "Traces",
    "Untraceable",
    "count_parameters",
    "emit",
    "evaluate",
    "leaves",
    "show",
    "simplify",
    "trace",
    "underlying",
]
