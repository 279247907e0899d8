"""What one attention call hands to a backend, complete and frozen, and what it gets back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import mlx.core as mx
import numpy as np

from flextrace.tracer import Bound, Formula
from flextrace.tracer.expr.invariance import shifts_with_score

from .blocks import Blocks
from .int8_types import Int8Rows, QKQuant, Smoothing
from .spec import Formulas

Sizes = tuple[int, int, int, int]  # batch, query heads, q_len, kv_len


MOST_FORMULAS = 256  # that are kept
_formulas: dict[tuple[int, int], Formulas] = {}


def _formulas_of(score: Formula | None, mask: Formula | None) -> Formulas:
    """The Formulas of these two: the object of the last call with them, with what it has found out since.

    Equal ones that are other objects have other names, so that they are told apart by identity.
    """
    key = (id(score), id(mask))
    found = _formulas.get(key)
    if found is None:  # those that are kept hold on to both, so that no other object has this identity
        if len(_formulas) >= MOST_FORMULAS:
            _formulas.clear()
        found = _formulas[key] = Formulas(score, mask)
    return found


class Mods:
    """The score_mod and the mask_mod of a call, with what they capture now.

    formulas: both without their captured values.
    present: those that there are, the score_mod first.
    arrays, numbers: the captured arrays (mlx or numpy) and numbers, by slot.
    mlx_arrays: the arrays that MLX knows: it may hide their values, and differentiate by them.
    """

    __slots__ = ("arrays", "formulas", "mask", "mlx_arrays", "numbers", "present", "score")

    def __init__(self, score: Bound | None = None, mask: Bound | None = None) -> None:
        arrays: list[Any] = []
        numbers: list[bool | int | float] = []
        present = [mod for mod in (score, mask) if mod is not None]
        for mod in present:
            arrays += mod.arrays
            numbers += mod.numbers
        self.score: Final = score
        self.mask: Final = mask
        self.present: Final = present
        self.formulas: Final = _formulas_of(score and score.trace.formula, mask and mask.trace.formula)
        self.arrays: Final = arrays
        self.numbers: Final = numbers
        self.mlx_arrays: Final = [array for array in arrays if isinstance(array, mx.array)]

    def typed_numbers(self) -> Iterator[tuple[str, bool | int | float]]:
        """The captured numbers by slot, each behind its dtype: "bool", "int" or "float"."""
        for capture, number in zip(self.formulas.numbers, self.numbers, strict=True):
            yield capture.dtype, number

    def readable(self) -> list[mx.array]:
        """The captured arrays by slot, for gathers.

        Where MLX hides the values (an array that mx.compile or mx.vmap replaces), integers are taken modulo 2**32.

        Raises:
            OverflowError: an integer is beyond int32.
        """
        return [_readable(mod, array) for mod in self.present for array in mod.arrays]

    @property
    def needs_row_term(self) -> bool:
        """Whether the score_mod must see scores with what the mean of the keys took from them; without it a row's
        weights do not change."""
        return self.score is not None and not shifts_with_score(self.score.trace.expr, self.score.numbers)

    def with_arrays(self, arrays: Mapping[int, mx.array]) -> Mods:
        """The same mods with some of their captured arrays replaced, by slot."""
        slots = iter([arrays.get(slot, array) for slot, array in enumerate(self.arrays)])
        bound = [mod and mod._replace(arrays=[next(slots) for _ in mod.arrays]) for mod in (self.score, self.mask)]
        return Mods(*bound)

    def check_sizes(self, sizes: Sizes) -> None:
        """Raises ValueError where a captured array is too short for (batch, query heads, q_len, kv_len)."""
        for mod in self.present:
            if mod.arrays:
                shapes = tuple([tuple(array.shape) for array in mod.arrays])
                mod.trace.array_sizes.check(shapes, tuple(mod.numbers), sizes)


def _readable(mod: Bound, array: mx.array | np.ndarray[Any, Any]) -> mx.array:
    # A copy, because numpy calls an axis of one element contiguous whatever its stride, and MLX takes no negative ones.
    given = mx.array(np.array(array, order="C")) if isinstance(array, np.ndarray) else array
    if given.dtype in (mx.int64, mx.uint64, mx.uint32) and given.size:
        try:
            low, high = int(given.min()), int(given.max())
        except (ValueError, RuntimeError):  # MLX's refusal to evaluate inside a transformation
            return given
        if low < -(2**31) or high >= 2**31:
            raise OverflowError(
                f"{mod.trace.name}: a captured integer array holds a value outside int32, the integer type of "
                "kernels; renumber its values (for ids: the inverse of a unique) or convert it to float32"
            )
    return given


NO_MODS = Mods()


INT8_KEYS = QKQuant("row", smooth_k=False)  # how q is rounded beside keys that are in int8 already


class AttentionCall(NamedTuple):
    """One checked call. (A tuple, as frozen as a dataclass and made in a fifth of the time, at every call.)

    q: [batch, query_heads, q_len, head_dim]; k: [1 or batch, kv_heads, kv_len, head_dim];
    v: [1 or batch, kv_heads, kv_len, value_dim], all of one dtype (float32, float16, bfloat16); or k, or k and v,
    in int8 with the scales of their rows, which asks for `quant` by rows that smooths neither.
    """

    q: mx.array
    k: mx.array
    v: mx.array
    scale: float
    mods: Mods = NO_MODS
    blocks: Blocks | None = None
    want_lse: bool = False
    want_max: bool = False
    threads: int = 0  # cpu; 0: as many as the process may use
    async_copy: bool = False  # metal, simulator: copy tiles of k and v by simdgroup_async_copy
    fast_math: bool = False  # metal, simulator: fast functions in the score_mod
    staged: bool = False  # one kernel after the other instead of the fused one
    quant: QKQuant | None = None  # q and k become int8
    smooth_k: bool = False  # k is to be smoothed: whoever runs the call adds `smoothing`
    smoothing: Smoothing | None = None  # of k; that of q is quant.smooth_q
    # k that is int8 already, less the means of `smoothing`: float32 [as k without head_dim], nan for a special row
    k_scales: mx.array | None = None
    # v that is int8 already: v = v * v_scales + v_means, [as v without value_dim] and [as v with length 1] or None
    v_scales: mx.array | None = None
    v_means: mx.array | None = None

    @classmethod
    def of(
        cls,
        query: mx.array,
        key: mx.array | Int8Rows,
        value: mx.array | Int8Rows,
        scale: float,
        mods: Mods = NO_MODS,
        blocks: Blocks | None = None,
        want_lse: bool = False,
        want_max: bool = False,
        **asked: Any,
    ) -> AttentionCall:
        """The call on keys and values as a caller has them, in int8 or not; asked: the fields from `threads` on."""
        if isinstance(key, Int8Rows):
            asked |= {"quant": INT8_KEYS, "k_scales": key.scales}
            if key.means is not None:
                asked["smoothing"] = Smoothing(key.means, add_back=mods.needs_row_term)
            key = key.values
        if isinstance(value, Int8Rows):
            asked |= {"v_scales": value.scales, "v_means": value.means}
            value = value.values
        return cls(query, key, value, scale, mods, blocks, want_lse, want_max, **asked)

    @property
    def arrays(self) -> list[mx.array]:
        """All of MLX's arrays that the result follows from."""
        ready = [x for x in (self.k_scales, self.v_scales, self.v_means) if x is not None]
        return [self.q, self.k, self.v, *ready, *self.mods.mlx_arrays]


@dataclass(slots=True, eq=False)
class Result:
    """out: [batch, query_heads, q_len, value_dim], dtype of q; lse, max_scores: float32 [batch, query_heads, q_len].

    notice: which option was not followed, why, and the remedy; the caller says it once.
    intermediates: what each stage gave, by name and in order, if the call was staged.
    """

    out: mx.array
    lse: mx.array | None
    max_scores: mx.array | None
    notice: str | None = None
    intermediates: dict[str, mx.array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class BackwardCall:
    """One call, what it gave, and the cotangents of that.

    call: plain keys and values (not int8, not smoothed).
    out, d_out: [batch, query_heads, q_len, value_dim], dtype of q, any strides.
    lse: float32 [batch, query_heads, q_len], as the forward gave it; -inf for a row without keys. d_lse, d_max_scores:
        the same shape, or None where nothing follows from them.
    wanted: the slots of captured floating arrays whose gradients are asked for.
    """

    call: AttentionCall
    out: mx.array
    lse: mx.array
    d_out: mx.array
    d_lse: mx.array | None = None
    max_scores: mx.array | None = None
    d_max_scores: mx.array | None = None
    wanted: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Gradients:
    """Each of the shape and dtype of what it is the gradient of; arrays: by `wanted`."""

    q: mx.array
    k: mx.array
    v: mx.array
    arrays: tuple[mx.array, ...] = ()
