"""What cannot be traced -> TraceError: the user's line, a caret under the right part, the reason and the remedy."""

from __future__ import annotations

import ast
import collections
import decimal
import functools
import linecache
import math
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from flextrace import tracer
from flextrace.tracer import errors
from flextrace.tracer.errors import Place, TraceError, Untraceable


@dataclass
class Window:
    left: Any
    right: Any = 2


@dataclass
class Lazy:
    x: Any

    @functools.cached_property
    def y(self) -> Any:
        return self.x == 1


@dataclass
class Checked:
    x: Any

    def __post_init__(self) -> None:
        self.y = self.x == 1


class Metres(int):
    """A number with a meaning of its own."""

    def __add__(self, other: Any) -> Any:
        return Metres(int(self) + other)


class Foreign:
    """An array of another library."""

    def __getitem__(self, index: int) -> float:
        return 1.0


def module_like(name: str, function: str) -> types.SimpleNamespace:
    """A library with one function, which is built in or written in Python."""

    def call(*args: Any) -> Any:
        raise AssertionError("it must not run on symbols")

    call.__name__, call.__module__ = function, name
    call = types.FunctionType(call.__code__, {"__name__": name, "AssertionError": AssertionError}, function)
    call.__module__ = name
    return types.SimpleNamespace(**{function: call})


NAMES: dict[str, Any] = {
    "mx": mx,
    "np": np,
    "math": math,
    "functools": functools,
    "Window": Window,
    "Lazy": Lazy,
    "Checked": Checked,
    "metres": Metres(3),
    "tenth": decimal.Decimal("0.1"),
    "groups": collections.defaultdict(list),
    "seen": collections.deque([1]),
    "a1": mx.array([1.0, 2.0, 3.0]),
    "a2": mx.zeros((4, 5)),
    "empty": mx.zeros((0, 3)),
    "huge": mx.zeros((20_000,)),
    "waves": mx.array([1j]),
    "strings": np.array(["a"]),
    "endless": np.broadcast_to(np.float32(0), (2**31,)),
    "swapped": np.array([1.0, 2.0], np.dtype("f4").newbyteorder("S")),
    "table_of": nn.Embedding(4, 1),
    "layer": nn.Linear(1, 1),
    "captured_list": [1, 2],
    "captured_dict": {"a": 1},
    "words": ["a", "b"],
    "big": 2**40,
    "zero": 0,
    "minus": -1,
    "n": 3,
    "config": types.SimpleNamespace(x=1),
    "foreign": Foreign(),
    "torch": module_like("torch", "exp"),
    "jnp": module_like("jax.numpy", "arcsinh"),
    "scipy": module_like("scipy.special", "gammaln"),
}
SCORE = "def mod(score, b, h, q_idx, kv_idx):\n"
MASK = "def mod(b, h, q_idx, kv_idx):\n"


@dataclass
class Case:
    """body: the statements of a score_mod (or a whole definition of `mod`); under: what the caret marks."""

    name: str
    body: str
    under: str
    reason: str
    remedy: str
    kind: tracer.Kind = "score_mod"

    def define(self) -> Any:
        body = textwrap.dedent(self.body).strip("\n")
        text = body if "def mod(" in body or body.startswith("mod =") else SCORE + textwrap.indent(body, "    ")
        filename = f"<case {self.name}>"
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
        names = {**NAMES, "__name__": "user_module"}
        exec(compile(text, filename, "exec"), names)
        return names["mod"]


UNKNOWN = "known only inside the kernel"
# fmt: off
CASES = [
    # ---- control flow on symbols
    Case("while", "while score > 0:\n    score -= 1\nreturn score", "while score > 0:",
         f"`while` on 0.0 < score, which is {UNKNOWN}", "loop over a fixed range and stop with `if`"),
    Case("range", "for i in range(q_idx):\n    score += i\nreturn score", "range(q_idx)",
         f"a loop bound depends on q_idx, which is {UNKNOWN}",
         "loop over a fixed range and leave out the rest with `if`"),
    Case("range of an array", "return sum(i for i in range(a1[h]))", "range(a1[h])",
         "a loop bound depends on array0[h]", "loop over a fixed range"),
    Case("assert", "assert score > 0\nreturn score", "assert score > 0", f"an assert on a value {UNKNOWN}",
         "check captured values outside the mod"),
    Case("failed assert", "assert n == 4, f'n is {n}, not {2 + 2}'\nreturn score",
         "assert n == 4, f'n is {n}, not {2 + 2}'", "assertion failed: n is 3, not 4",
         "call the mod with values that satisfy it"),
    Case("failed assert without a message", "assert not n\nreturn score", "assert not n", "assertion failed",
         "call the mod with values"),
    Case("raise", "if n == 3:\n    raise ValueError('no 3')\nreturn score", "raise ValueError('no 3')",
         "the mod raises ValueError('no 3')", "call the mod with values that it accepts"),
    Case("raise a class", "raise KeyError", "raise KeyError", "the mod raises KeyError", "call the mod with values"),
    Case("raise under a symbol", "if score > 0:\n    raise ValueError\nreturn score", "raise ValueError",
         f"`raise` under a condition {UNKNOWN}", "a kernel raises nothing"),
    Case("comprehension filter", "return sum(i for i in range(3) if i < q_idx)", "i < q_idx",
         f"a comprehension keeps elements by a condition {UNKNOWN}", "sum(x if c else 0 for ...)"),
    Case("filter", "return sum(filter(lambda i: i < q_idx, range(3)))", "sum(filter(lambda i: i < q_idx, range(3)))",
         f"filter() keeps elements by a condition {UNKNOWN}", "make the unwanted ones neutral"),
    Case("endless loop", "while True:\n    if score > 0:\n        break\nreturn score", "while True:",
         "a loop ran 10000 times", "give it an end that plain Python reaches soon"),
    Case("endless loop of numbers", "n = 1\nwhile n:\n    n += 1\nreturn score", "while n:",
         "a loop ran 10000 times", "give it an end that plain Python reaches soon"),
    Case("endless recursion", "def f(x):\n    return f(x + 1)\nreturn f(q_idx)", "f(x + 1)",
         "the recursion of f goes too deep, or does not end", "recurse over a Python number with a near end"),
    # ---- branches that disagree
    Case("one side only", "if score > 0:\n    x = 1\nreturn x", "x",
         "x has a value on some paths only, depending on a condition known inside the kernel",
         "give x a value before the `if`"),
    Case("number or list", "if score > 0:\n    x = []\nelse:\n    x = 1\nreturn score + x", "x",
         f"x is a list of 0 or a number, depending on a condition {UNKNOWN}",
         "give x one kind of value in both branches"),
    Case("string or string", "x = 'a'\nif score > 0:\n    x = 'b'\nreturn score if x == 'a' else 0", "x",
         "x is 'b' or 'a'", "give x one kind of value"),
    Case("array or array", "x = a1\nif score > 0:\n    x = a2[0]\nreturn x[h]", "x",
         "x is the array a2 or the array a1", "give x one kind of value"),
    Case("element of a merged list", "if score > 0:\n    x = [1, None]\nelse:\n    x = [2, 3]\nreturn x[1]", "x[1]",
         "x[1] is None or a number", "give x[1] one kind of value"),
    Case("element of a merged dict", "if score > 0:\n    x = {'a': 1}\nelse:\n    x = {'a': 'b'}\nreturn x['a']",
         "x['a']", "x['a'] is a number or 'b'", "one kind of value"),
    Case("conditional expression", "return 1 if score > 0 else None", "1 if score > 0 else None",
         "this expression is a number or None", "make both sides numbers"),
    Case("or with a string", "return score or 'a'", "score or 'a'", "this expression is a number or 'a'",
         "make both sides numbers"),
    Case("no return on one path", "if score > 0:\n    return score\nelif h == 1:\n    score = 2", "return score",
         "mod returns a value on some paths and None on others",
         "end the function with a `return` for the remaining positions"),
    Case("two kinds of return", "if score > 0:\n    return 'a'\nreturn score", "return 'a'",
         f"the returned value is 'a' or a number, depending on a condition {UNKNOWN}",
         "return one kind of value on every path"),
    Case("bare return on one path", "if score > 0:\n    return\nreturn score", "return",
         "the returned value is None or a number", "return one kind of value"),
    # ---- what is returned
    Case("no return", "score + 1", "def mod(score, b, h, q_idx, kv_idx):", "mod returns nothing",
         "end it with a `return`"),
    Case("returns a string", "return 'a'", "def mod(score, b, h, q_idx, kv_idx):", "mod returns a str",
         "return one number"),
    Case("returns a tuple", "return score, 1", "def mod(score, b, h, q_idx, kv_idx):", "mod returns a tuple",
         "return one number"),
    Case("returns a whole array", "return a1", "def mod(score, b, h, q_idx, kv_idx):",
         "a1 still has 1 of its 1 dimensions here and is not a number", "index it down to one element: a1[...]"),
    Case("mask returns a score", MASK + "    return q_idx * 0.5", "def mod(b, h, q_idx, kv_idx):",
         "the mask_mod mod returns a float, where True or False is expected", "decorate it with @flex.score_mod",
         "mask_mod"),
    Case("mask returns a float literal", MASK + "    return 1.0", "def mod(b, h, q_idx, kv_idx):", "returns a float",
         "return a comparison", "mask_mod"),
    # ---- kinds of functions and parameters
    Case("too few parameters", MASK + "    return q_idx", "def mod(b, h, q_idx, kv_idx):",
         "a score_mod takes 5 arguments (score, b, h, q_idx, kv_idx), mod takes 4",
         "a function of 4 arguments is a mask_mod: pass it as block_mask; else write def mod(score, b, h, q_idx, kv_"),
    Case("too many parameters", SCORE + "    return score", "def mod(score, b, h, q_idx, kv_idx):",
         "a mask_mod takes 4 arguments (b, h, q_idx, kv_idx), mod takes 5",
         "a function of 5 arguments is a score_mod: pass it as score_mod; else write def mod(b, h, q_idx, kv_idx): ...",
         "mask_mod"),
    Case("a score without an index", "def mod(score, b, q_idx, kv_idx):\n    return score",
         "def mod(score, b, q_idx, kv_idx):", "mod takes 4", "write def mod(score, b, h, q_idx, kv_idx): ..."),
    Case("a factory", "def mod(window):\n    def band(b, h, q, k):\n        return q - k < window\n    return band",
         "def mod(window):", "mod takes 1",
         "it makes a mask_mod: call it and pass what it gives as block_mask, mod(window)", "mask_mod"),
    Case("a factory of the other kind",
         "def mod(cap=1.0) -> 'flex.ScoreMod':\n    return lambda s, b, h, q, k: min(s, cap)",
         "def mod(cap=1.0) -> 'flex.ScoreMod':", "mod takes 0",
         "it makes a score_mod: call it and pass what it gives as score_mod, mod(cap)", "mask_mod"),
    Case("a factory of as many arguments", "return lambda: score", "def mod(score, b, h, q_idx, kv_idx):",
         "mod returns a Closure", "where mod makes the mod, call it and pass what it gives: mod(...)"),
    Case("a method without its instance",
         "class Layer:\n    def mod(self, score, b, h, q_idx, kv_idx):\n        return score\nmod = Layer.mod",
         "def mod(self, score, b, h, q_idx, kv_idx):",
         "mod is a method and belongs to an instance: its first argument is self",
         "take that of an instance: Layer(...).mod"),
    Case("super in a function inside a method",
         "class Layer:\n    def mod(self, score, b, h, q_idx, kv_idx):\n        return (lambda it: super().mod)(self)\n"
         "mod = Layer().mod", "super()", "super() stands in a function inside the method",
         "call super() in the method itself"),
    Case("lambda with wrong parameters", "mod = lambda x: x", "mod = lambda x: x", "<lambda> takes 1",
         "write lambda score, b, h, q_idx, kv_idx: ..."),
    Case("required keyword", "def mod(score, b, h, q_idx, kv_idx, *, scale):\n    return score",
         "def mod(score, b, h, q_idx, kv_idx, *, scale):", "mod() misses the argument scale",
         "pass it, or give it a default"),
    Case("generator", SCORE + "    yield score", "def mod(score, b, h, q_idx, kv_idx):", "mod is a generator",
         "write a plain function that returns one value"),
    Case("async", "async " + SCORE + "    return score", "async def mod(score, b, h, q_idx, kv_idx):",
         "mod is an async function", "write a plain function"),
    Case("async generator", "async " + SCORE + "    yield score", "async def mod(score, b, h, q_idx, kv_idx):",
         "mod is an async function", "write a plain function"),
    Case("generator inside", "def f():\n    yield score\nreturn sum(f())", "yield score",
         "Yield expressions have no meaning in a mod", "use plain arithmetic on numbers"),
    # ---- calls
    Case("too many arguments", "def f(x):\n    return x\nreturn f(score, 1)", "f(score, 1)",
         "f() takes 1 arguments, not 2", "match the parameters"),
    Case("missing argument", "f = lambda x, y: x\nreturn f(score)", "f(score)", "<lambda>() misses the argument y",
         "pass it, or give it a default"),
    Case("argument twice", "f = lambda x: x\nreturn f(score, x=1)", "f(score, x=1)", "<lambda>() got x twice",
         "pass it once"),
    Case("unknown keyword", "f = lambda x: x\nreturn f(score, y=1)", "f(score, y=1)",
         "<lambda>() has no parameter y", "match the parameters"),
    Case("calling a number", "return score(1)", "score(1)", "a number or array is called like a function",
         "remove the call parentheses"),
    Case("calling an array", "return a1(h)", "a1(h)", "a number or array is called like a function",
         "remove the call parentheses"),
    Case("calling None", "f = None\nreturn f(score)", "f(score)", "NoneType", "use arithmetic"),
    Case("wrong arguments of a function", "return mx.exp(score, 2, 3)", "mx.exp(score, 2, 3)",
         "exp(..., ..., ...) has no kernel form", "pass the numbers alone, by position"),
    Case("keyword of a function", "return mx.where(condition=score, x=1, y=2)",
         "mx.where(condition=score, x=1, y=2)", "where(condition=..., x=..., y=...) has no kernel form",
         "pass the numbers alone"),
    Case("min with a key", "return min([score, 1], key=lambda x: -x)", "min([score, 1], key=lambda x: -x)",
         "min() with key=", "compare the candidates with min(a, b)"),
    Case("max of one number", "return max(score)", "max(score)", "the number score cannot be looped over",
         "loop over range(...) or a container"),
    Case("round to digits", "return round(score, 2)", "round(score, 2)", "round(x, digits) has no kernel form",
         "write round(x * 10**digits) / 10**digits"),
    # ---- functions that are not known
    Case("unknown mx function", "return mx.fft.fft(score)", "mx.fft.fft(score)",
         "mx.fft is not a function that a kernel can compute", "elementwise functions of mx, math or numpy"),
    Case("no such mx function", "return mx.sigmod(score)", "mx.sigmod", "mlx.core has no sigmod",
         "did you mean mx.sigmoid?"),
    Case("two letters exchanged", "return mx.tahn(score)", "mx.tahn", "mlx.core has no tahn", "did you mean mx.tanh?"),
    Case("a call of an embedding", "return score + table_of(q_idx - kv_idx)[0]", "table_of(q_idx - kv_idx)",
         "table_of is an nn.Embedding, a module that makes arrays",
         "index its weight: table_of.weight[q_idx - kv_idx]"),
    Case("an embedding indexed", "return score + table_of[q_idx][0]", "table_of[q_idx]",
         "table_of is an nn.Embedding, a module that makes arrays", "index its weight: table_of.weight[...]"),
    Case("a call of another module", "return score + layer(q_idx)", "layer(q_idx)",
         "layer is an nn.Linear, a module that makes arrays, and a mod sees one score at a time",
         "compute layer(...) outside the mod for all positions, and index the result inside it"),
    Case("no such thing at all", "return mx.zzzqqq(score)", "mx.zzzqqq", "mlx.core has no zzzqqq",
         "check the spelling"),
    Case("unknown math function", "return math.gamma(score)", "math.gamma(score)",
         "math.gamma is not a function that a kernel can compute", "use arithmetic, comparisons"),
    Case("unknown builtin", "return hash(score)", "hash(score)", "hash is not a function that a kernel can compute",
         "use arithmetic"),
    Case("torch function", "return torch.exp(score)", "torch.exp(score)", "torch.exp cannot run in a kernel",
         "write mx.exp(score) instead"),
    Case("jax function", "return jnp.arcsinh(score)", "jnp.arcsinh(score)", "jnp.arcsinh cannot run in a kernel",
         "write mx.arcsinh(score) instead"),
    Case("scipy function", "return scipy.gammaln(score)", "scipy.gammaln(score)",
         "scipy.gammaln is not a function that a kernel can compute", "a helper written in Python"),
    Case("a class of the user's", "return Foreign(score)", "Foreign", "name 'Foreign' is not defined",
         "check the spelling, or define it before the call"),
    # ---- reductions and whole arrays
    Case("mx reduction", "return score + mx.sum(a1)", "mx.sum(a1)",
         "mx.sum reduces an array, and a mod sees one score at a time",
         "compute mx.sum(...) outside the mod and index the result inside it, for example row_sum[q_idx]"),
    Case("mx reduction of the score", "return mx.softmax(score)", "mx.softmax(score)", "mx.softmax reduces an array",
         "outside the mod"),
    Case("numpy reduction", "return score + np.mean(a1)", "np.mean(a1)", "np.mean reduces an array",
         "row_mean[q_idx]"),
    Case("method reduction", "return score + a2[h].max()", "a2[h].max", "a2.max() reduces a captured array",
         "compute it once outside, row_max = a2.max(...), and index row_max in the mod"),
    Case("sum of an array", "return score + sum(a1)", "sum(a1)",
         "sum(a1) reduces a captured array, and a mod sees one score at a time",
         "compute it outside the mod, total = mx.sum(a1), and capture total"),
    Case("max of an array", "return score + max(a2[h])", "max(a2[h])", "max(a2) reduces a captured array",
         "capture total"),
    Case("method of an array", "return score + a2.T[h, b]", "a2.T", "a2.T works on the whole captured array",
         "prepare the array outside the mod and index it here: a2[...]"),
    Case("elementwise on an array", "return mx.exp(a1)", "mx.exp(a1)",
         "a1 still has 1 of its 1 dimensions here and is not a number", "index it down to one element: a1[...]"),
    Case("arithmetic on an array", "return score + a2[h]", "score + a2[h]",
         "a2 still has 1 of its 2 dimensions here", "a2[...]"),
    Case("comparing an array", "return a1 > 0", "a1 > 0", "is not a number", "index it down to one element"),
    Case("truth of an array", "return 1 if a1 else 0", "1 if a1 else 0", "is not a number", "index it down"),
    Case("looping over a huge array", "return sum(x for x in huge)", "(x for x in huge)",
         "a loop over the 20000 elements of huge", "index the array instead"),
    Case("making an array", "return mx.array([score, 1])", "mx.array([score, 1])",
         "an array cannot be made inside a mod", "make it outside and index it here"),
    Case("complex array", "return waves[0]", "waves", "waves is an array of complex64, which a kernel cannot read",
         "capture real parts"),
    Case("array in another machine's order", "return score + swapped[h]", "swapped",
         "swapped is an array of >f4, whose bytes lie in the order of other machines",
         "swapped = swapped.astype(swapped.dtype.newbyteorder('='))"),
    Case("array of strings", "return strings[0]", "strings", "which a kernel cannot read",
         "convert it to a bool, integer or float array"),
    Case("empty array", "return empty[h, 0]", "empty", "empty is an empty array, of shape (0, 3)",
         "capture at least one element"),
    # ---- items
    Case("slice of an array", "return a2[h, :]", "a2[h, :]", "a2 is indexed with a slice, which gives an array",
         "index every axis with a number; slice the array outside the mod"),
    Case("ellipsis", "return a2[..., 0]", "a2[..., 0]", "a2 is indexed with ..., which gives an array",
         "index every axis"),
    Case("new axis", "return a2[None, h]", "a2[None, h]", "a2 is indexed with None", "index every axis"),
    Case("too many indices", "return a1[h, b]", "a1[h, b]", "too many indices: a1 has 1 dimensions",
         "leave out what is too much"),
    Case("too many indices, chained", "return a2[h][b][q_idx]", "a2[h][b][q_idx]",
         "too many indices: a2 has 2 dimensions", "leave out"),
    Case("float index", "return a1[q_idx / 2]", "a1[q_idx / 2]",
         "a1 is indexed with a float, and array indices are integers", "convert the index with int(...)"),
    Case("bool index", "return a1[q_idx > 2]", "a1[q_idx > 2]", "a1 is indexed with a bool",
         "convert the index with int(...)"),
    Case("literal bool index", "return a1[True]", "a1[True]", "a1 is indexed with a bool", "int(...)"),
    Case("string index", "return a1['x']", "a1['x']", "a1 is indexed with a str", "int(...)"),
    Case("index out of range", "return a2[h, 5]", "a2[h, 5]",
         "index 5 is out of range for axis 1 of a2, which has size 5", "stay inside the array"),
    Case("negative index out of range", "return a1[-4]", "a1[-4]",
         "index -4 is out of range for axis 0 of a1, which has size 3", "stay inside the array"),
    Case("setting an element of an array", "a1[0] = score\nreturn score", "a1[0] = score",
         "an element of a captured array is set", "a mod must not change what it captures"),
    Case("indexing a number", "return score[0]", "score[0]", "score is a number and cannot be indexed",
         "index a captured array"),
    Case("indexing an element", "x = a1[h] + 0\nreturn x[0]", "x[0]", "is a number and cannot be indexed",
         "index a captured array"),
    Case("dict by symbol", "return {0: 1.0, 1: 2.0}[h]", "{0: 1.0, 1: 2.0}[h]",
         f"a dictionary key depends on h, which is {UNKNOWN}",
         "replace the dict by an mx.array indexed with the number"),
    Case("dict.get by symbol", "return {0: 1.0}.get(h, 0)", "{0: 1.0}.get(h, 0)", "a dictionary key depends on h",
         "replace the dict by an mx.array"),
    Case("symbol as a key", "return len({h: 1})", "{h: 1}", "a dictionary key depends on h", "replace the dict"),
    Case("list of strings by symbol", "return score if words[h] == 'a' else 0", "words[h]",
         "this list of 2 elements cannot be indexed by a symbolic number",
         "make it one array outside the mod (mx.array or mx.stack)"),
    Case("list of arrays by symbol", "return [a1, a1][h][0]", "[a1, a1][h]",
         "this list of 2 elements cannot be indexed by a symbolic number", "mx.stack"),
    Case("list by float symbol", "return [1, 2][score]", "[1, 2][score]", "a list is indexed with a float",
         "convert the index with int(...)"),
    Case("slice by symbol", "return sum([1, 2, 3][:h])", "[1, 2, 3][:h]", "a container index depends on h",
         "capture an mx.array and index that"),
    Case("foreign array by symbol", "return score + foreign[h]", "foreign[h]", "a Foreign is indexed by h",
         "capture an mx.array instead (mx.array(x)) and index that"),
    Case("string by symbol", "return score if 'abc'[h] == 'a' else 0", "'abc'[h]", "a str is indexed by h",
         "capture an mx.array"),
    Case("list index out of range", "return [1, 2][5]", "[1, 2][5]",
         "Python raised IndexError in getitem: list index out of range",
         "fix the expression; it runs as plain Python while the mod is traced"),
    Case("missing key", "return captured_dict['b']", "captured_dict['b']", "Python raised KeyError",
         "fix the expression"),
    # ---- attributes and methods
    Case("item", "return score.item()", "score.item", f".item() needs the value of score, which is {UNKNOWN}",
         "leave out .item(): a mod computes with the symbolic number itself"),
    Case("tolist of an element", "return a1[h].tolist()", "a1[h].tolist", ".tolist() needs the value of array0[h]",
         "leave out .tolist()"),
    Case("unknown attribute of a number", "return score.foo", "score.foo", "a number in a mod has no attribute foo",
         "use operators and mx functions on it"),
    Case("attribute by number", "return getattr(score, 2)", "getattr(score, 2)",
         "Python raised TypeError in attrgetter", "fix the expression"),
    Case("asking for an attribute by number", "return hasattr(config, q_idx)", "hasattr(config, q_idx)",
         f"an argument depends on q_idx, which is {UNKNOWN}", "pass plain numbers"),
    Case("unknown attribute of an object", "return score + config.y", "config.y",
         "Python raised AttributeError in getattr", "fix the expression"),
    Case("setting an attribute", "config.x = score\nreturn score", "config.x = score",
         "a mod must not change objects", "keep intermediate values in local variables"),
    Case("augmenting an attribute", "config.x += 1\nreturn score", "config.x += 1", "a mod must not change objects",
         "keep intermediate values"),
    Case("astype float16", "return mx.array(score).astype(mx.float16)", "mx.array(score).astype(mx.float16)",
         "kernels have no numbers of type float16", "use mx.float32, mx.int32 or mx.bool_"),
    Case("list.index of a symbol", "return [1, q_idx].index(h)", "[1, q_idx].index(h)",
         f".index() compares values that are {UNKNOWN}", "compare them one by one"),
    Case("sorting symbols", "xs = [q_idx, h]\nxs.sort()\nreturn xs[0]", "xs.sort()",
         f".sort() compares values that are {UNKNOWN}", "min, max, or `in`"),
    Case("sorted symbols", "return sorted([q_idx, h])[0]", "sorted([q_idx, h])",
         "sorted is not a function that a kernel can compute", "use arithmetic"),
    # ---- changes
    Case("appending to a captured list", "captured_list.append(1)\nreturn score", "captured_list.append(1)",
         ".append() changes a captured list",
         "a mod must not change what it captures: copy it first, xs = list(xs)"),
    Case("setting a captured key", "captured_dict['b'] = 1\nreturn score", "captured_dict['b'] = 1",
         "setting an element changes a captured dict", "must not change what it captures"),
    Case("augmenting a captured list", "xs = captured_list\nxs += [1]\nreturn score", "xs += [1]",
         "+= changes a captured list", "copy it first"),
    Case("updating a captured dict", "captured_dict.update(a=2)\nreturn score", "captured_dict.update(a=2)",
         ".update() changes a captured dict", "copy it first"),
    Case("append under a symbol", "xs = []\nif score > 0:\n    xs.append(1)\nreturn len(xs)", "xs.append(1)",
         f".append() changes a list under a condition {UNKNOWN}",
         "change it on every path, with an element chosen by the condition: xs[i] = x if c else xs[i]"),
    Case("set item under a symbol", "xs = [1]\nif score > 0:\n    xs[0] = 2\nreturn xs[0]", "xs[0] = 2",
         "setting an element changes a list under a condition", "xs[i] = x if c else xs[i]"),
    Case("dict under a symbol", "d = {}\nif score > 0:\n    d['a'] = 2\nreturn score", "d['a'] = 2",
         "setting an element changes a dict under a condition", "change it on every path"),
    Case("augment under a symbol", "xs = [1]\nif score > 0:\n    xs += [2]\nreturn len(xs)", "xs += [2]",
         "+= changes a list under a condition", "change it on every path"),
    Case("append after a break",
         "xs = []\nfor i in range(3):\n    if i == q_idx:\n        break\n    xs.append(i)\nreturn sum(xs)",
         "xs.append(i)", ".append() changes a list under a condition", "change it on every path"),
    Case("append after a continue",
         "xs = []\nfor i in range(3):\n    if i == q_idx:\n        continue\n    xs.append(i)\nreturn sum(xs)",
         "xs.append(i)", ".append() changes a list under a condition", "change it on every path"),
    Case("append in a later iteration",
         "xs = []\nfor i in range(3):\n    xs.append(i)\n    if i == q_idx:\n        break\nreturn sum(xs)",
         "xs.append(i)", ".append() changes a list under a condition", "change it on every path"),
    Case("append after a return in a helper",
         "def f(xs):\n    if score > 0:\n        return 0\n    xs.append(1)\n    return 1\nxs = []\ny = "
         "f(xs)\nreturn sum(xs) + y", "xs.append(1)", ".append() changes a list under a condition",
         "change it on every path"),
    Case("append in a conditional expression", "xs = []\nscore > 0 and xs.append(1)\nreturn len(xs)", "xs.append(1)",
         ".append() changes a list under a condition", "change it on every path"),
    Case("append in the else of a loop",
         "xs = []\nfor i in range(3):\n    if i == q_idx:\n        break\nelse:\n    xs.append(1)\nreturn len(xs)",
         "xs.append(1)", ".append() changes a list under a condition", "change it on every path"),
    Case("setting an element of a tuple", "x = (1, 2)\nx[0] = score\nreturn score", "x[0] = score",
         "an element of a tuple is set", "keep intermediate values in local variables"),
    # ---- operators
    Case("invert a bool", "return ~(q_idx > 1)", "~(q_idx > 1)",
         "~ on a bool is -1 or -2 in Python, both of them true", "write `not x` (or mx.logical_not(x))"),
    Case("invert a float", "return ~score", "~score", "~ on a float", "convert with int(...) first"),
    Case("bits of a float", "return score & 1", "score & 1", "& on a float", "convert with int(...) first"),
    Case("shift by a float", "return q_idx << score", "q_idx << score", "<< on a float",
         "convert with int(...) first"),
    Case("negative shift count", "return q_idx << -1", "q_idx << -1", "<< with the negative shift count -1",
         "shift the other way"),
    Case("negative count of a function", "return mx.right_shift(q_idx, 2 - 5)", "mx.right_shift(q_idx, 2 - 5)",
         ">> with the negative shift count -3", "shift the other way"),
    Case("negative shift of numbers", "return score + (5 >> -1)", "5 >> -1",
         "Python raised ValueError in rshift: negative shift count", "fix the expression"),
    Case("index divided by zero", "return score + q_idx // 0", "q_idx // 0",
         "an integer division or modulo by zero", "divide by another number"),
    Case("index modulo zero", "return score + divmod(q_idx, 0)[1]", "divmod(q_idx, 0)",
         "an integer division or modulo by zero", "divide by another number"),
    Case("divisor that the trace is bound to", "xs = [1] * zero\nreturn score + q_idx % zero",
         "def mod(score, b, h, q_idx, kv_idx):",
         "an integer division or modulo by zero = 0", "divide by another number"),
    Case("count that the trace is bound to", "xs = [1] * minus\nreturn score + (q_idx >> minus)",
         "def mod(score, b, h, q_idx, kv_idx):",
         "a shift with the negative count minus = -1", "shift the other way"),
    Case("matmul", "return score @ a1", "score @ a1", "matrix multiplication inside a mod",
         "write the sum of products over a fixed range"),
    Case("augmented matmul", "score @= a1\nreturn score", "score @= a1", "matrix multiplication inside a mod",
         "sum of products"),
    Case("number and string", "return score + 'a'", "score + 'a'", "+ between a str and the number score",
         "use numbers on both sides"),
    Case("number and list", "return [1] + score", "[1] + score", "+ between a list and the number score",
         "use numbers on both sides"),
    Case("repeat by symbol", "return len([1] * h)", "[1] * h", f"a repeat count depends on h, which is {UNKNOWN}",
         "use a fixed length"),
    Case("number and None", "return score + None", "score + None",
         "a NoneType cannot be combined with a symbolic number",
         "use numbers, booleans and elements of captured arrays"),
    Case("ordering with a string", "return score < 'a'", "score < 'a'",
         "a str cannot be combined with a symbolic number", "use numbers"),
    Case("complex number", "return score * 1j", "score * 1j", "a complex cannot be combined", "use numbers"),
    Case("large literal", "return q_idx + 2147483648", "q_idx + 2147483648",
         "the integer 2147483648 does not fit int32, the integer type of kernels",
         "write it as a float (2147483648.0)"),
    Case("large captured integer", "return score + big", "big",
         "the captured integer big = 1099511627776 does not fit int32", "make it a float (1099511627776.0)"),
    Case("is between numbers", "return 1 if q_idx is kv_idx else 0", "q_idx is kv_idx", "`is` between two numbers",
         "write `==`"),
    Case("is True", "return 1 if (q_idx > 1) is True else 0", "(q_idx > 1) is True", "`is` between two numbers",
         "write `==`"),
    Case("order of tuples", "return (q_idx, 1) < (h, 2)", "(q_idx, 1) < (h, 2)", "an order depends on q_idx",
         "compare the elements one by one"),
    Case("comparing records", "return Window(q_idx) == Window(h)", "Window(q_idx) == Window(h)",
         "== between objects that hold symbolic values", "compare their fields"),
    Case("len of a number", "return len(score)", "len(score)", "len() of the number score",
         "take the len() of an array or container"),
    Case("looping over a number", "for x in q_idx:\n    pass\nreturn score", "for x in q_idx:",
         "the number q_idx cannot be looped over", "loop over range(...) or a container"),
    Case("literal division by zero", "x = 5 // 0\nreturn score + x", "5 // 0",
         "Python raised ZeroDivisionError in floordiv: integer division or modulo by zero", "fix the expression"),
    Case("adding a string and a list", "x = 'a' + []\nreturn score", "'a' + []", "Python raised TypeError in add",
         "it runs as plain Python while the mod is traced"),
    Case("negating a string", "x = -'a'\nreturn score", "-'a'", "Python raised TypeError in neg",
         "fix the expression"),
    Case("an axis beyond int32", "return score + endless[q_idx]", "endless",
         "endless has an axis of 2147483648 elements, but the indices of kernels are int32: 2147483647 is the most",
         "capture the part that the mod reads"),
    # ---- what is another value at every call
    Case("a random number of mlx", "return score + mx.random.uniform()", "mx.random.uniform()",
         "mx.random.uniform() would be drawn once, and be the same number for the whole matrix",
         "flex.mods.uniform(seed, b, h, q_idx, kv_idx)"),
    Case("a random number of a helper",
         "def draw():\n    import random\n    return random.random()\nreturn score + draw()",
         "random.random()", "random.random() would be drawn once", "draw an array outside the mod, and index it"),
    Case("a clock", "import time\nreturn score + time.time()", "time.time()",
         "time.time() would be read once, and be the same for the whole matrix",
         "read the clock outside the mod, and capture the number"),
    # ---- names and targets
    Case("undefined name", "return scoer", "scoer", "name 'scoer' is not defined",
         "check the spelling, or define it before the call"),
    Case("read before assignment", "y = x + 1\nx = 2\nreturn y", "x", "x has no value here",
         "give x a value on every path that leads here"),
    Case("empty cell",
         "def outer():\n    def mod(score, b, h, q_idx, kv_idx):\n        return score * later\n    return "
         "mod\n    later = 1\nmod = outer()", "later", "later has no value yet in the enclosing function",
         "assign later before using the mod"),
    Case("unpacking too many", "x, y = 1, 2, 3\nreturn score", "x, y = 1, 2, 3",
         "3 values cannot be unpacked into 2 names", "match the counts"),
    Case("unpacking too few", "x, *y, z = [1]\nreturn score", "x, *y, z = [1]",
         "1 values cannot be unpacked into 3 names", "match the counts"),
    Case("unpacking a number", "x, y = q_idx\nreturn score", "x, y = q_idx",
         "the number q_idx cannot be looped over", "loop over range"),
    Case("missing import", "import not_a_module\nreturn score", "import not_a_module",
         "Python raised ModuleNotFoundError", "fix the expression"),
    Case("missing name in a module", "from math import nothing\nreturn score", "from math import nothing",
         "math.nothing", "fix the expression"),
    # ---- statements
    Case("try", "try:\n    pass\nexcept ValueError:\n    pass\nreturn score", "try:",
         "the statement `try` has no meaning in a mod", "a kernel raises nothing: test the condition with `if`"),
    Case("with", "with open('x') as f:\n    return score", "with open('x') as f:",
         "the statement `with` has no meaning in a mod", "open resources outside the mod"),
    Case("global", "global n\nn = 4\nreturn score", "global n", "the statement `global` has no meaning in a mod",
         "a mod must not change outside variables"),
    Case("nonlocal", "x = 1\ndef f():\n    nonlocal x\n    x = 2\nf()\nreturn score", "nonlocal x",
         "the statement `nonlocal` has no meaning in a mod", "return the value instead"),
    Case("del", "del score\nreturn 1", "del score", "the statement `del` has no meaning in a mod",
         "just stop using the name"),
    Case("class", "class C:\n    pass\nreturn score", "class C:", "the statement `class` has no meaning in a mod",
         "define the class outside the mod"),
    Case("match", "match n:\n    case 3:\n        return score\nreturn 0", "match n:",
         "the statement `match` has no meaning in a mod", "write if/elif"),
    Case("inner async function", "async def f():\n    pass\nreturn score", "async def f():",
         "the statement `async def` has no meaning in a mod", "write a plain def"),
    # ---- what the tracer cannot follow exactly
    Case("text of a symbol", "return score + (f'{h}' == '1')", "f'{h}' == '1'",
         "the text 'h' holds a number that is known only inside the kernel", "use such a text in messages only"),
    Case("text as a key", "return score + {'1': 2}.get(str(h), 0)", "{'1': 2}.get(str(h), 0)", "the text 'h' holds",
         "compare the number itself"),
    Case("length of a set of symbols", "return score + len({q_idx, kv_idx})", "len({q_idx, kv_idx})",
         "only the kernel knows which elements of this set are equal", "use a list"),
    Case("appending to what was chosen", "xs, ys = [1], [2]\nzs = xs if h else ys\nzs.append(3)\nreturn score",
         "zs.append(3)", f".append() changes a list that a condition {UNKNOWN} chose", "copy it first: xs = list(xs)"),
    Case("appending to the chosen", "xs, ys = [1], [2]\n(xs if h else ys).append(3)\nreturn score + len(xs)",
         "(xs if h else ys).append(3)", f".append() changes a list that a condition {UNKNOWN} chose", "copy it first"),
    Case("appending to what was chosen from", "xs, ys = [1], [2]\nzs = xs if h else ys\nxs.append(3)\nreturn len(zs)",
         "xs.append(3)", f".append() changes a list that a condition {UNKNOWN} chose", "copy it first: xs = list(xs)"),
    Case("augmenting what was chosen", "xs, ys = [1], [2]\nzs = xs if h else ys\nzs += [3]\nreturn score", "zs += [3]",
         f"+= changes a list that a condition {UNKNOWN} chose", "copy it first: xs = list(xs)"),
    Case("which list was chosen", "xs, ys = [1], [2]\nzs = xs if h else ys\nreturn score + (zs is xs)", "zs is xs",
         f"`is` on a list that a condition {UNKNOWN} chose", "compare with =="),
    Case("two namedtuples of two classes", "p = np.finfo if h else Window(1)\nreturn p.left",
         "np.finfo if h else Window(1)",
         "this expression is a type or a Window", "make both sides numbers"),
    Case("appending after a return",
         "def f(c):\n    xs = [1]\n    if c:\n        return xs\n    xs.append(2)\n    return xs\n"
         "return len(f(h)) + score", "xs.append(2)",
         ".append() changes a list that some positions have returned already", "copy it first"),
    Case("a function returned early",
         "def f(c):\n    n = 1\n    g = lambda: n\n    if c:\n        return g\n    n = 2\n"
         "    return g\nreturn f(h)() + score", "if c:", f"<lambda> is returned under a condition {UNKNOWN}",
         "call it and return what it gives"),
    Case("an attribute of a local function", "f = lambda x: x\nreturn f.name + score", "f.name",
         "the attribute name of a function that is defined in a mod", "keep it in a variable"),
    Case("a cached property of a symbol", "return Lazy(h).y + score", "Lazy(h).y",
         "plain Python would compute y of a Lazy that holds symbolic numbers", "write it as a method"),
    Case("a record that looks at a symbol", "return Checked(h).y + score", "Checked(h)",
         "Checked looks at what it is made of, which is symbolic here", "leave out __post_init__"),
    Case("the text of a record", "return len(str(Window(n))) + score", "str(Window(n))",
         "plain Python would look inside a Window that holds symbolic numbers", "pass the numbers themselves"),
    Case("an operator's method", "xs = [score]\nreturn xs.__len__()", "xs.__len__", "__len__ is what an operator does",
         "write the operator itself"),
    Case("a missing key of a defaultdict", "return len(groups[1]) + score", "groups[1]",
         "looking up 1 adds it to a defaultdict", "give it the key before"),
    Case("a kind of int", "return score + metres", "metres", "metres is a Metres, an int that may mean something else",
         "capture the plain number, int(metres)"),
    Case("a number of another library", "return score + (h == tenth)", "h == tenth",
         "== between a symbolic number and a Decimal, whose == may be anything", "compare with a number"),
    Case("which text", "return score + ('ab' is 'a' + str(n))", "'ab' is 'a' + str(n)", "`is` between two texts",
         "write `==`"),
    Case("which array", "return score + (a1 is a2)", "a1 is a2", "`is` between two arrays", "keep a flag"),
    Case("in a function", "f = lambda x: x\nreturn score + (h in f)", "h in f", "`in` on a function", "call it"),
    Case("a keyword twice", "f = lambda x: x\nreturn f(x=score, **{'x': 1})", "f(x=score, **{'x': 1})",
         "a call gives x twice",
         "pass it once"),
    Case("a type that a condition chose", "x = 1 if h else 0.5\nreturn score + isinstance(x, float)",
         "isinstance(x, float)",
         f"depends on a condition {UNKNOWN}", "give both sides of the condition one type"),
    Case("assigned in any()", "any((t := x) == h for x in [1, 2])\nreturn score + t", "t",
         "t was assigned where only the kernel knows whether Python came as far", "assign it in a loop"),
    Case("setattr", "setattr(config, 'x', 3)\nreturn score", "setattr(config, 'x', 3)",
         "setattr() has no meaning in a mod",
         "keep intermediate values in local variables"),
    Case("an append by Python itself", "seen.append(1)\nreturn score + len(seen)", "seen.append(1)",
         "append() changes a deque from outside", "must not change what it captures"),
]
# fmt: on


def failure(case: Case) -> TraceError:
    with pytest.raises(TraceError) as caught:
        tracer.trace(case.define(), case.kind)
    return caught.value


def marked(message: str) -> str:
    """What the last caret of a message stands under."""
    lines = message.splitlines()
    at = max(i for i, line in enumerate(lines) if set(line.strip()) == {"^"})
    start, end = lines[at].index("^"), len(lines[at])
    return lines[at - 1][start:end]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_messages(case: Case) -> None:
    error = failure(case)
    message = str(error)
    assert case.reason in error.reason, message
    assert case.remedy in error.remedy, message
    assert message.startswith(f"cannot trace {error.mod}: {error.reason}\n")
    assert message.splitlines()[-1] == f"Remedy: {error.remedy}"
    assert marked(message) == case.under, message
    assert f'  File "<case {case.name}>", line ' in message


def test_names_are_distinct() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


# ---- the whole message -----------------------------------------------------------------------------------------------


def test_a_whole_message() -> None:
    case = Case("whole", "\n\ndistance = q_idx - kv_idx\nreturn score * größe(distance)\n", "", "", "")
    assert str(failure(case)) == (
        "cannot trace mod: name 'größe' is not defined\n"
        '  File "<case whole>", line 3, in mod\n'
        "    return score * größe(distance)\n"
        "                   ^^^^^\n"
        "Remedy: check the spelling, or define it before the call"
    )


def test_calls_are_shown_from_the_outside_in() -> None:
    text = """
    def inner(x):
        return x.item()

    def outer(x):
        y = inner(x)
        return y

    def mod(score, b, h, q_idx, kv_idx):
        return outer(score) + 1
    """
    error = failure(Case("calls", text, "", "", ""))
    assert [(place.function, place.line) for place in error.places] == [("mod", 9), ("outer", 5), ("inner", 2)]
    assert re.sub(r"\s*\^+", "", str(error)) == (
        "cannot trace mod: .item() needs the value of score, which is known only inside the kernel\n"
        '  File "<case calls>", line 9, in mod\n    return outer(score) + 1\n'
        '  File "<case calls>", line 5, in outer\n    y = inner(x)\n'
        '  File "<case calls>", line 2, in inner\n    return x.item()\n'
        "Remedy: leave out .item(): a mod computes with the symbolic number itself"
    )


def test_the_cause_is_kept() -> None:
    error = failure(next(case for case in CASES if case.name == "list index out of range"))
    assert isinstance(error.__cause__, IndexError)


def test_an_expression_of_many_lines_is_marked_on_its_first() -> None:
    error = failure(Case("lines", "return (score +\n        missing(\n            1))", "", "", ""))
    assert marked(str(error)) == "missing"


def test_a_place_without_its_line() -> None:
    assert str(Place("<gone>", "f", 3)) == '  File "<gone>", line 3, in f'


def test_tabs_and_wide_characters_keep_the_caret_in_place() -> None:
    error = failure(Case("tabs", SCORE + "\tnäme = 'ü'; return score + missing", "", "", ""))
    assert marked(str(error)) == "missing"


def test_errors_can_be_raised_again_and_hashed() -> None:
    error = TraceError("mod", "reason", "remedy")
    assert {error: 1}[error] == 1 and str(error) == "cannot trace mod: reason\nRemedy: remedy"
    assert errors.TraceError is tracer.TraceError


def test_division_of_numbers_of_the_call_is_reported_at_the_call() -> None:
    with pytest.raises(ZeroDivisionError, match="integer division or modulo by zero = 0"):
        function = Case("zero", "return score + q_idx // zero", "", "", "").define()
        tracer.Traces().bind(function, "score_mod")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (max, "max is not a function written in Python"),
        (functools.partial(max, 1), "max is not a function written in Python"),
        (3, "int is not a function written in Python"),
    ],
)
def test_what_is_not_a_python_function(function: Any, reason: str) -> None:
    with pytest.raises(TraceError, match=reason):
        tracer.trace(function, "score_mod")


def test_a_deep_expression() -> None:
    text = "return " + "(" * 80 + "score" + ".real" * 0 + " if score else 1)" * 80
    old = sys.getrecursionlimit()
    function = Case("deep", text, "", "", "").define()
    sys.setrecursionlimit(len_of_stack() + 150)
    try:
        with pytest.raises(TraceError, match="an expression nests too deeply"):
            tracer.trace(function, "score_mod")
    finally:
        sys.setrecursionlimit(old)


def len_of_stack() -> int:
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
    return depth


# ---- every place that raises is reached ----------------------------------------------------------------------


def sites() -> Iterator[tuple[str, range]]:
    """Where the tracer makes an Untraceable: file name, lines."""
    for path in sorted(Path(tracer.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Untraceable":
                yield path.name, range(node.lineno, (node.end_lineno or node.lineno) + 1)


OTHER_TESTS = {"find.py", "advice.py"}  # test_source.py and test_porting.py have the cases of these


def test_every_error_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: set[tuple[str, int]] = set()
    original = Untraceable.__init__

    def recording(self: Untraceable, reason: str, remedy: str) -> None:
        frame = sys._getframe(1)
        reached.add((Path(frame.f_code.co_filename).name, frame.f_lineno))
        original(self, reason, remedy)

    monkeypatch.setattr(Untraceable, "__init__", recording)
    functions: list[tuple[Any, Callable[[], tracer.Kind]]] = [(max, lambda: "mask_mod")]
    for case in CASES:
        functions.append((case.define(), lambda kind=case.kind: kind))  # type: ignore[misc]
    for function, kind in functions:
        with pytest.raises(TraceError):
            tracer.trace(function, kind())
    missed = [
        f"{name}:{lines.start}"
        for name, lines in sites()
        if name not in OTHER_TESTS and not any((name, line) in reached for line in lines)
    ]
    assert not missed, f"no case of the table raises at {missed}"
