"""Random numbers -> random bool and int expressions over the indices, with what they capture, and random tiles.

Unlike tests/expressions.py these are trees, not programs: quick to make, quick to evaluate at every position of many
tiles, and rich in what bounds can get wrong: ints that wrap, divisors that span 0, gathers with any index.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flextrace.tracer.expr.node import KV_IDX, Q_IDX, B, Expr, H, apply, const
from flextrace.tracer.expr.simplify import simplify

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
SMALL = (0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 32, 64, 100, -1, -2, -3, -8, -16)
LARGE = (255, 4096, 65535, 2**24 + 1, 2**30, INT_MAX, INT_MAX - 1, INT_MAX - 60, INT_MIN, INT_MIN + 1, -(2**30), -4097)
FLOATS = (0.0, -0.0, 0.5, 3.0, -7.25, 40.0, 2.0**31, 1e30, -1e30, np.inf, -np.inf, np.nan)


class Case(NamedTuple):
    """An expression with its captured numbers and arrays."""

    expr: Expr
    numbers: tuple[Any, ...]
    arrays: tuple[np.ndarray, ...]


class Tiles(NamedTuple):
    """Index ranges of many tiles (as tile_bounds takes them) and the indices of all their positions."""

    ranges: dict[str, tuple[np.ndarray, np.ndarray]]
    positions: dict[str, np.ndarray]  # [tiles..., heads, rows, columns]
    shape: tuple[int, ...]


class Maker:
    """Draws expressions; numbers and arrays are collected as they are captured."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.numbers: list[Any] = []
        self.arrays: list[np.ndarray] = []
        self.made: dict[str, list[Expr]] = {"int": [], "bool": [], "float": []}

    def choose(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def make(self, dtype: str, depth: int) -> Expr:
        """An expression of this dtype, now and then one that occurs already."""
        if self.made[dtype] and self.chance(0.15):
            return self.choose(self.made[dtype])
        node: Expr = getattr(self, f"leaf_{dtype}")() if depth <= 0 else getattr(self, f"make_{dtype}")(depth - 1)
        self.made[dtype].append(node)
        return node

    # ---- ints --------------------------------------------------------------------------------------------

    def leaf_int(self) -> Expr:
        if self.chance(0.75):
            return self.choose((Q_IDX, KV_IDX, Q_IDX, KV_IDX, H, B))
        value = self.choose(SMALL if self.chance(0.8) else LARGE)
        return self.param("int", value) if self.chance(0.3) else const(value)

    def make_int(self, depth: int) -> Expr:
        kind = self.choose(("linear",) * 3 + ("divide", "divide", "order", "unary", "bits", "other", "load"))
        if kind == "other":
            what = self.choose(("where", "bool", "float"))
            if what == "where":
                return apply("where", self.make("bool", depth), self.make("int", depth), self.make("int", depth))
            return apply("to_int", self.make(what, depth))
        if kind == "load":
            return self.load(self.choose(("int8", "int32", "int64", "uint8")), depth)
        if kind == "unary":
            return apply(self.choose(("neg", "abs", "bit_not")), self.make("int", depth))
        ops = {
            "linear": ("add", "sub", "sub", "mul"),
            "divide": ("floor_div", "mod"),
            "order": ("min", "max"),
            "bits": ("bit_and", "bit_or", "bit_xor", "shl", "shr"),
        }[kind]
        right = self.leaf_int() if self.chance(0.5) else self.make("int", depth)
        return apply(self.choose(ops), self.make("int", depth), right)

    # ---- bools -------------------------------------------------------------------------------------------

    def leaf_bool(self) -> Expr:
        if self.chance(0.1):
            return self.param("bool", self.chance(0.5))
        return apply(self.choose(("lt", "le")), *self.choose(((Q_IDX, KV_IDX), (KV_IDX, Q_IDX))))

    def make_bool(self, depth: int) -> Expr:
        kind = self.choose(("compare",) * 5 + ("floats", "logic", "logic", "not", "where", "load"))
        if kind in ("compare", "floats"):
            dtype = "int" if kind == "compare" else "float"
            op = self.choose(("lt", "le", "lt", "le", "eq", "ne"))
            return apply(op, self.make(dtype, depth), self.make(dtype, depth - int(self.chance(0.5))))
        if kind == "logic":
            return apply(self.choose(("and", "or", "xor")), self.make("bool", depth), self.make("bool", depth))
        if kind == "where":
            return apply("where", *(self.make("bool", depth) for _ in range(3)))
        return self.load("bool", depth) if kind == "load" else apply("not", self.make("bool", depth))

    # ---- floats ------------------------------------------------------------------------------------------

    def leaf_float(self) -> Expr:
        if self.chance(0.6):
            return apply("to_float", self.leaf_int())
        value = float(self.choose(FLOATS))
        return self.param("float", value) if self.chance(0.3) else const(value)

    def make_float(self, depth: int) -> Expr:
        kind = self.choose(("cast", "cast", "exact", "exact", "order", "where", "load", "inexact"))
        if kind == "cast":
            return apply("to_float", self.make(self.choose(("int", "int", "bool")), depth))
        if kind == "where":
            return apply("where", self.make("bool", depth), self.make("float", depth), self.make("float", depth))
        if kind == "load":
            return self.load(self.choose(("float32", "float16")), depth)
        if kind == "exact":
            return apply(self.choose(("neg", "abs", "floor", "ceil", "trunc", "round")), self.make("float", depth))
        if kind == "inexact" and self.chance(0.5):
            return apply(self.choose(("exp", "sqrt", "log")), self.make("float", depth))
        ops = ("min", "max") if kind == "order" else ("add", "sub", "mul", "div")
        return apply(self.choose(ops), self.make("float", depth), self.make("float", depth))

    # ---- captures ----------------------------------------------------------------------------------------

    def param(self, dtype: str, value: Any) -> Expr:
        self.numbers.append(value)
        return Expr("param", dtype, value=len(self.numbers) - 1)  # type: ignore[arg-type]

    def load(self, element: str, depth: int) -> Expr:
        ndim = int(self.choose((1, 1, 1, 2, 2, 3)))
        largest = {1: 300, 2: 50, 3: 12}[ndim]
        shape = tuple(int(n) for n in self.rng.integers(1, largest, size=ndim))
        slot = len(self.arrays)
        self.arrays.append(self.table(element, shape))
        indices = [self.leaf_int() if self.chance(0.5) else self.make("int", depth) for _ in shape]
        return apply("load", *indices, value=(slot, element))

    def table(self, element: str, shape: tuple[int, ...]) -> np.ndarray:
        if element == "bool":
            blocks = self.rng.random(tuple(-(-n // 8) for n in shape)) < 0.5
            for axis, n in enumerate(shape):
                blocks = np.repeat(blocks, 8, axis=axis).take(range(n), axis=axis)
            return blocks
        if element.startswith("float"):
            values = self.rng.normal(size=shape) * 20
            values[self.rng.random(shape) < self.choose((0.0, 0.02))] = self.choose((np.nan, np.inf, -np.inf, -0.0))
            return values.astype(element)
        low, high = self.choose(((0, 4), (0, 100), (-20, 20), (-128, 127)))
        values = self.rng.integers(low, high, size=shape)
        if self.chance(0.5):
            values = np.sort(values, axis=-1)
        if element in ("int32", "int64") and self.chance(0.1):
            values.flat[0] = self.choose((INT_MIN, INT_MAX))
        return values.clip(0, 255).astype(element) if element == "uint8" else values.astype(element)


def random_case(rng: np.random.Generator, dtype: str = "bool") -> Case:
    maker = Maker(rng)
    expr = maker.make(dtype, int(rng.integers(1, 6)))
    if maker.chance(0.5):
        expr = simplify(expr)
    return Case(expr, tuple(maker.numbers), tuple(maker.arrays))


def random_tiles(rng: np.random.Generator, most: int = 24, heads: int | None = None) -> Tiles:
    """A grid of tiles, or tiles one by one; of one size, anywhere in the range of int32 indices."""
    heads = heads or int(rng.integers(1, 4))
    rows, columns = (int(n) for n in rng.choice([1, 2, 5, 8, 12], size=2))
    grid = bool(rng.random() < 0.5)
    shape = (int(rng.integers(1, 6)), int(rng.integers(1, 6))) if grid else (int(rng.integers(1, most)),)

    def starts(count: int) -> np.ndarray:
        limit = int(rng.choice([30, 200, 5000, 2**31 - 20]))
        lowest = int(rng.choice([0, 0, max(0, limit - 100)]))
        return rng.integers(lowest, limit, size=count)

    q, kv = starts(shape[0])[:, None] if grid else starts(shape[0]), starts(shape[-1])
    h, b = rng.integers(0, 20, size=shape), np.asarray(rng.integers(0, 4))
    ranges = {
        "b": (b, b),
        "h": (h, h + heads - 1),
        "q_idx": (q, q + rows - 1),
        "kv_idx": (kv, kv + columns - 1),
    }
    positions = {
        "b": b,
        "h": h[..., None, None, None] + np.arange(heads)[:, None, None],
        "q_idx": q[..., None, None, None] + np.arange(rows)[:, None],
        "kv_idx": kv[..., None, None, None] + np.arange(columns),
    }
    return Tiles(ranges, positions, shape)
