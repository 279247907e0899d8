"""The tracer's own tables -> Markdown: what a mod can contain. Printed by `python -m flextrace.tracer.vocabulary`.

VOCABULARY.md keeps the text for readers; a test compares it with what this prints and traces all that is listed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

from .captures.recorder import ARRAY_TYPES
from .expr import functions
from .expr.derivative import KINKS
from .frontends.frames import MAX_DEPTH
from .frontends.refusals import MAX_ITERATIONS
from .frontends.refusals import REMEDIES as REMEDIES_OF_STATEMENTS
from .frontends.syntax.expressions import COMPARE_SYMBOLS, EXPRESSIONS
from .frontends.syntax.statements import STATEMENTS
from .porting.advice import FOREIGN
from .semantics.calls import SPECIAL
from .semantics.objects import MAX_CHOICES, MAX_UNROLLED
from .semantics.operators import BINARY, UNARY
from .semantics.outside import CONTAINERS, FIXED
from .semantics.running import CARRIERS, WRITERS
from .semantics.values import NUMBERS, PYTHON_TYPES, REMEDIES
from .source.signature import name_of

SPECIAL_FUNCTIONS = (len, isinstance, type, getattr, hasattr, filter, functools.partial)
OPERATOR_NODES = frozenset({"BinOp", "UnaryOp", "BoolOp", "Compare"})  # these are shown as operators
FORMS: dict[str, tuple[str, str]] = {  # a kind of node that the reader knows -> how it is written, what to know
    "Assign": ("x, *rest = xs", "also `xs[1] = x` on lists and dicts that the mod made"),
    "AnnAssign": ("x: float = score", ""),
    "AugAssign": ("score += 1", ""),
    "Expr": ("xs.append(score)", "an expression of its own"),
    "If": ("if q_idx > 3: score = 0.0", "where only the kernel knows the condition, both sides are computed"),
    "For": ("for i in range(8): score += i", f"unrolled, at most {MAX_ITERATIONS:,} times; `else` works"),
    "While": ("while n > 0: n -= 1", "on what is known while tracing"),
    "Break": ("break", "under any condition"),
    "Continue": ("continue", "under any condition"),
    "Return": ("return score", "anywhere, once on every path"),
    "FunctionDef": ("def twice(x): return x * 2", "recursion must end on a number known while tracing"),
    "Import": ("import math", ""),
    "ImportFrom": ("from math import exp", ""),
    "Assert": ("assert n < 100", "on what is known while tracing"),
    "Raise": ("if n > 100: raise ValueError", "where it is reached, the trace fails"),
    "Pass": ("pass", ""),
    "Constant": ("0.5", "ints must fit int32"),
    "Name": ("score", "local, captured, global or builtin"),
    "IfExp": ("score if q_idx > 3 else 0.0", ""),
    "NamedExpr": ("(d := q_idx - kv_idx)", ""),
    "Attribute": ("config.slope", ""),
    "Subscript": (
        "slopes[h]",
        "arrays and lists by any int; indices wrap once, computed ones then stay inside, others must be inside",
    ),
    "Slice": ("xs[1:]", "of lists and tuples"),
    "Call": ("helper(score, *xs)", "of what is listed here and of functions written in Python"),
    "Lambda": ("lambda x: x + 1", ""),
    "Tuple": ("(score, 1)", ""),
    "List": ("[score, 1]", ""),
    "Set": ("{1, 2}", ""),
    "Dict": ("{'a': score}", "keys known while tracing"),
    "ListComp": ("[x * 2 for x in xs]", "`if` on what is known while tracing"),
    "SetComp": ("{x for x in xs}", ""),
    "DictComp": ("{i: score for i in range(3)}", ""),
    "GeneratorExp": ("sum(x for x in xs)", ""),
    "JoinedStr": ("f'{n}'", "for messages"),
    "FormattedValue": ("f'{n:3}'", ""),
}


def vocabulary() -> str:
    """The table as Markdown.

    Example:
        >>> vocabulary().splitlines()[0]
        '# What can a mod contain'
    """
    parts = [
        "# What can a mod contain",
        "Made by `python -m flextrace.tracer.vocabulary` from the tracer's own tables. A mod is read as Python and "
        "evaluated once over symbols; what is listed under *Functions* and *Operators* becomes kernel code, the rest "
        f"runs while tracing. Numbers in a kernel are {', '.join(PYTHON_TYPES)} (int32 and float32).",
        "## Operators",
        _operators(),
        "## Functions",
        "By the module's own names, where the installed version has them; all on single numbers.",
        _table(("from", "functions"), _functions()),
        "On values known while tracing any Python function runs. These also take symbols, or containers of them:",
        _table(("from", "functions"), _carriers()),
        "## Statements and expressions",
        _table(("write", "note"), _forms()),
        "## Captures",
        _table(("captured", "what becomes of it"), _captures()),
        "## What is refused, and what to write instead",
        _table(("refused", "instead"), _refused()),
        "## Gradients",
        "Every function and operator has a derivative in the score and in captured floating arrays, exact where the "
        "function is smooth. Elsewhere:",
        _table(("at", "the derivative"), ((_cell(at), _cell(what)) for at, what in KINKS.items())),
        "## Functions without source",
        "Where the text of a function is nowhere (a prompt, `python -c`, `exec`, a `.pyc`) or is another by now, its "
        "bytecode is read, in CPython 3.10 to 3.14: the same expressions by the same rules. `mod.inspect()` says which "
        "was read. What differs:",
        _table(("from the source", "from the bytecode"), _from_bytecode()),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"| {a} | {b} |" for a, b in (head, ("---", "---"), *rows))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code(names: Iterable[str]) -> str:
    return " ".join(f"`{_cell(name)}`" for name in names)


def _operators() -> str:
    symbols = [*BINARY, *(s for s in UNARY if s not in BINARY), *COMPARE_SYMBOLS.values(), "and", "or", "not"]
    return (
        f"{_code(symbols)}. As in Python: ints wrap at 32 bits, `//` and `%` floor, `/` gives a float, `<<` and `>>` "
        "by 32 and more leave 0 or the sign. Where Python raises, a known operand is an error (`q_idx // 0`, "
        "`q_idx << n` with n = -1); per position, `//` and `%` give 0 and a negative shift count counts as 32."
    )


def _nodes() -> list[str]:
    """The kinds of statement and expression that the reader knows, statements first."""
    kinds = {kind.__name__ for kind in (*STATEMENTS, *EXPRESSIONS)} - OPERATOR_NODES
    return sorted(kinds, key=list(FORMS).index)


def _forms() -> Iterable[tuple[str, str]]:
    for form, note in (FORMS[name] for name in _nodes()):
        if note:
            yield f"`{_cell(form)}`", note
    yield "also", _code(form for form, note in (FORMS[name] for name in _nodes()) if not note)


def _functions() -> Iterable[tuple[str, str]]:
    yield "`mx` and `numpy`", _code(sorted(functions.ARRAY_FUNCTIONS))
    yield "`mx`", _code(sorted(functions.MLX_ONLY))
    yield "`numpy`", _code(sorted(functions.NUMPY_ONLY))
    yield "`math`", _code(sorted(functions.MATH))
    yield "`operator`", _code(sorted(functions.OPERATOR))
    yield "builtins", _code(sorted(functions.BUILTINS))
    yield "methods", _code(f".{name}()" for name in sorted(functions.METHODS))


def _carriers() -> Iterable[tuple[str, str]]:
    known: list[Any] = [*CARRIERS, *WRITERS, *(kept for kept in SPECIAL_FUNCTIONS if id(kept) in SPECIAL)]
    for title, module in (("builtins", "builtins"), ("`itertools`", "itertools"), ("`functools`", "functools")):
        yield title, _code(sorted(f.__name__ for f in known if _home(f) == module))


def _home(function: Any) -> str:
    if function in vars(itertools).values():
        return "itertools"
    return "functools" if function in vars(functools).values() else "builtins"


def _captures() -> Iterable[tuple[str, str]]:
    numbers, arrays = _code(kind.__name__ for kind in NUMBERS), _code(["mx.array", "np.ndarray"][: len(ARRAY_TYPES)])
    containers = _code(kind.__name__ for kind in CONTAINERS)
    fixed = _code(name_of(kind).strip("_") for kind in FIXED if kind not in (type(None), type(Ellipsis)))
    yield numbers, "a run-time parameter, read at every call; where it decides a branch or a loop, a constant"
    yield arrays, "a kernel input, read at every call: index it down to one element; bool, integer or float elements"
    yield containers, f"as in Python; of numbers, indexed by a symbol: an array (made in the mod: up to {MAX_CHOICES})"
    yield fixed + " `None`", "a constant; another value makes another trace"
    yield "functions, methods, `partial`, mods", f"traced through, at most {MAX_DEPTH} calls deep"
    yield "other objects", "their attributes, by these same rules; their methods written in Python are traced"


def _refused() -> Iterable[tuple[str, str]]:
    statements: dict[str, list[str]] = {}
    for keyword, remedy in REMEDIES_OF_STATEMENTS.items():
        statements.setdefault(remedy, []).append(keyword)
    for remedy, keywords in statements.items():
        yield _code(keywords), _cell(remedy)
    yield "generators, `async`, `yield`, `await`", "a plain function that returns one value"
    for what, remedy in REMEDIES.items():
        yield f"{what} that only the kernel knows", _cell(remedy)
    yield f"reductions: {_code(sorted(functions.REDUCTIONS))}", "compute it outside and index the result inside"
    yield f"a loop over more than {MAX_UNROLLED:,} elements of an array", "index the array"
    yield "changing what is captured", "keep intermediate values in local variables"
    yield (
        "random numbers and clocks, which would be one for the whole matrix",
        "`flex.mods.uniform(seed, b, h, q_idx, kv_idx)`; numbers and arrays drawn or read outside",
    )
    yield (
        f"functions and arrays of {_code(sorted(FOREIGN))}",
        "what the error names: `mx.tanh(score)`, `mx.array(t.numpy())`",
    )


def _from_bytecode() -> Iterable[tuple[str, str]]:
    yield "`match` on values", "read, as the comparisons that it became"
    yield "`try` around nothing", "gone"
    yield "`with`", "refused once what it opens was opened"
    yield "`while` on what only the kernel knows", "refused later, unless it ends for another reason"
    yield (
        "`(x if c else y) + 1`, `x + 1 if c else y + 1` at a function's end",
        "one code where it has no columns (Python 3.10, or `-X no_debug_ranges`): read as the second, which is equal "
        "where float32 holds the ints",
    )
    yield (
        "`(x if c else 1) + 2` at a function's end",
        "Python 3.14 computes `1 + 2`: read as `x + 2 if c else 3`, of equal value",
    )
    yield (
        "`((1 + 1 or x) if c else y) or z`: an operand of `and` or `or` that operators make of literals alone",
        "the compiler computes `1 + 1`; its truth is asked for together with that of `y`, which is of equal value",
    )
    yield "an expression that nests too deeply", "read"
    yield "`return` alone on some paths", "the same as an end without `return`"
    yield (
        "errors",
        "show the instructions of a line for its text, call a foreign function by its own name, and say of any call of "
        "it what to write",
    )


if __name__ == "__main__":
    print(vocabulary(), end="")
