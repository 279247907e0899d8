"""The meaning of Python's operations on the values of a trace: the page of verbs, all that a front end calls.

A front end reads a function (its `ast` today) and says what happens in it by these verbs. `t` is the trace
(`Tracing`). What depends on a position, the score or a captured number is an `Expr`, an array is an `ArrayView`,
anything else is the Python object itself. What has no meaning raises `Untraceable`; the front end adds the place.

| verb | what it means |
|---|---|
| `begin(inline)` | a new trace; `inline(t, function, path, args, kwargs)` is how the front end follows a call |
| `capture(t, value, path)` | what the mod sees of an outside object that is reached by `path` |
| `attribute(t, value, name)` | `value.name` |
| `item(t, value, key)` | `value[key]`; a key may be a slice, and a tuple for an array |
| `set_item(t, container, key, value)` | `container[key] = value` |
| `iterate(t, value)` | what a `for` over `value` yields, as a Python iterator |
| `unpack(t, value, count, star)` | the values of `a, b, *c = value` |
| `known(t, container)` | a captured container as one of the mod's own: for `*args`, `**kwargs` |
| `set_of(t, elements)` | `{*elements}` |
| `dict_key(t, key)` | the key of a dict that is made |
| `unary(t, symbol, a)` | `-a`, `+a`, `~a` |
| `binary(t, symbol, a, b)` | `a symbol b` |
| `augmented(t, symbol, a, b)` | what `a symbol= b` leaves in `a` |
| `compare(t, symbol, a, b)` | one comparison; also `in`, `not in`, `is`, `is not` |
| `truth(t, value)` | a Python bool where it is known while tracing, else a bool `Expr`: then both sides are followed |
| `invert_truth(t, value)` | `not value` |
| `number(value)` | a value as an operand: an array indexed down to one element is the number there |
| `call(t, function, args, kwargs)` | `function(*args, **kwargs)` |
| `imported(t, name)` | the module that `import name` gives |
| `check_raise(t)`, `raised(error)` | what `raise error` means, before `error` is made, and as an exception to raise |
| `text(t, value)` | a value to be written: an `UnknownText` where only the kernel knows it |
| `formatted(text, conversion, spec)` | `{text!conversion:spec}` of an f-string |
| `joined(parts)` | the parts of an f-string as one text |
| `run(function, *args)` | plain Python on known values; what it raises is reported at the user's line |
| `made(t, container)` | notes that the mod made a container or an iterator; gives it back |
| `parts_of(value)` | what a container or record of the mod holds |
| `keep_all(t, value, reason)` | from now on nothing in `value` may change |
| `tick(t)` | a time later than that of everything made so far |
| `choose(t, condition, a, b, name)` | what `name` holds where a condition in the kernel chose between two values |
| `merge`, `settle_pairs` | `choose` for several variables at once: containers that they share stay shared |

`Conflict` is what a variable holds where no value can be chosen: reading it raises `conflict.refuse()`. `Callback` is a
callable that belongs to the trace. Where lanes go on, and how they come together, is in `frontends.branches`; the
scope of a function, its names and arguments, is in `frontends.frames`. A new front end calls these three and nothing
else of the tracer's meaning.
"""

from .attributes import attribute
from .calls import Inline, begin, call
from .changes import keep_all, made, tick
from .merge import Pairs, choose, merge, settle_pairs
from .objects import dict_key, item, iterate, known, set_item, set_of, truth, unpack
from .operators import augmented, binary, compare, invert_truth, unary
from .outside import capture
from .running import check_raise, formatted, imported, joined, raised, text
from .tracing import Tracing
from .values import Callback, Conflict, UnknownText, number, parts_of, run

__all__ = [
    "Callback",
    "Conflict",
    "Inline",
    "Pairs",
    "Tracing",
    "UnknownText",
    "attribute",
    "augmented",
    "begin",
    "binary",
    "call",
    "capture",
    "check_raise",
    "choose",
    "compare",
    "dict_key",
    "formatted",
    "imported",
    "invert_truth",
    "item",
    "iterate",
    "joined",
    "keep_all",
    "known",
    "made",
    "merge",
    "number",
    "parts_of",
    "raised",
    "run",
    "set_item",
    "set_of",
    "settle_pairs",
    "text",
    "tick",
    "truth",
    "unary",
    "unpack",
]
