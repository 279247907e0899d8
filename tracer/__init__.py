"""Python function -> expression tree: reading, simplifying, evaluating and printing score_mods and mask_mods.

No MLX operation runs here, no kernel is known, no file is written.
"""

from .captures.guards import ArrayCapture, NumberCapture, Start
from .emit.cpp import CPP
from .emit.emit import Emitted, EmittedMany, Language, emit, emit_many
from .emit.metal import METAL, METAL_FAST
from .emit.python import PYTHON, function_text, gradient_lines, show
from .errors import Place, TraceError, Untraceable
from .expr.access import Pattern, Site, sites
from .expr.derivative import derivative, gradient_sites
from .expr.evaluate import evaluate
from .expr.node import OPS, Expr, leaves
from .expr.simplify import simplify
from .source.find import NoSource, source_of
from .source.signature import Kind, count_parameters, name_of, underlying
from .trace import Bound, Formula, Trace, Traces, trace

__all__ = [
    "CPP",
    "METAL",
    "METAL_FAST",
    "OPS",
    "PYTHON",
    "ArrayCapture",
    "Bound",
    "Emitted",
    "EmittedMany",
    "Expr",
    "Formula",
    "Kind",
    "Language",
    "NoSource",
    "NumberCapture",
    "Pattern",
    "Place",
    "Site",
    "Start",
    "Trace",
    "TraceError",
    "Traces",
    "Untraceable",
    "count_parameters",
    "derivative",
    "emit",
    "emit_many",
    "evaluate",
    "function_text",
    "gradient_lines",
    "gradient_sites",
    "leaves",
    "name_of",
    "show",
    "simplify",
    "sites",
    "source_of",
    "trace",
    "underlying",
]
