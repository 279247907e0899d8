"""Python function -> expression tree: reading, simplifying, evaluating and printing score_mods and mask_mods.

No MLX operation runs here, no kernel is known, no file is written.
"""

from .emit import Emitted, Language, emit
from .errors import Place, TraceError, Untraceable
from .evaluate import evaluate
from .expr import OPS, Expr, leaves
from .reads import ArrayCapture, NumberCapture, Start
from .signature import Kind, count_parameters, name_of, underlying
from .simplify import simplify
from .source import source_of
from .spellings import CPP, METAL, PYTHON, show
from .trace import Bound, Trace, Traces, trace

__all__ = [
    "CPP",
    "METAL",
    "OPS",
    "PYTHON",
    "ArrayCapture",
    "Bound",
    "Emitted",
    "Expr",
    "Kind",
    "Language",
    "NumberCapture",
    "Place",
    "Start",
    "Trace",
    "TraceError",
    "Traces",
    "Untraceable",
    "count_parameters",
    "emit",
    "evaluate",
    "leaves",
    "name_of",
    "show",
    "simplify",
    "source_of",
    "trace",
    "underlying",
]
