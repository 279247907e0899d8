"""What a user passes for a number or a flag -> int, float or bool: of Python, of numpy, or an array without axes.

`name` is the argument's, for the two errors that all of them raise:

    ValueError: mx.compile or mx.vmap has something without a value in an mx.array's place;
    GradientError: MLX differentiates the array, of which only the value would be used.
"""

from __future__ import annotations

import operator
from typing import Any

import mlx.core as mx
import numpy as np

from flextrace.tracer.errors import with_article

from .gradients import GradientError, is_traced

TEXT = (str, bytes, bytearray)  # float() would read these


def as_int(value: Any, name: str) -> int | None:
    """What `operator.index` gives; None where that takes nothing of the kind, and for a bool.

    Example:
        >>> import numpy as np
        >>> as_int(np.int64(24), "B"), as_int(24.0, "B"), as_int(True, "B")
        (24, None, None)
    """
    if type(value) is int:
        return value
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
    except ValueError as error:
        raise _without_value(error, name) from None


def as_float(value: Any, name: str) -> float | None:
    """What `float` gives; None where that takes nothing of the kind, and for a bool, text, or an array with axes.

    Example:
        >>> import numpy as np
        >>> as_float(np.float32(0.5), "scale"), as_float(2, "scale"), as_float("0.5", "scale")
        (0.5, 2.0, None)
    """
    if type(value) is float:
        return value
    if isinstance(value, TEXT) or as_bool(value, name) is not None or getattr(value, "ndim", 0) != 0:
        return None
    try:
        number = float(value)
    except (TypeError, OverflowError):
        return None
    except ValueError as error:
        raise _without_value(error, name) from None
    if isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating) and is_traced([value]):
        raise GradientError(
            f"{name} is differentiated, and only its value is used here: pass {name}.item(), or compute with the array "
            "in MLX or in a mod, where it has a gradient"
        )
    return number


def as_bool(value: Any, name: str) -> bool | None:
    """The bool that Python's, numpy's, or an array of one without axes stands for; None for anything else.

    Example:
        >>> import numpy as np
        >>> as_bool(np.bool_(True), "SMOOTH_K"), as_bool(1, "SMOOTH_K")
        (True, None)
    """
    if isinstance(value, bool):
        return value
    if not isinstance(value, (mx.array, np.ndarray, np.bool_)) or value.ndim:
        return None
    if value.dtype not in (mx.bool_, np.bool_):
        return None
    try:
        return bool(value)
    except ValueError as error:
        raise _without_value(error, name) from None


def shown(value: Any) -> str:
    """A value for a message: an array by its dtype and shape, which mx.compile does not hide."""
    if isinstance(value, (mx.array, np.ndarray)):
        kind = "mx.array" if isinstance(value, mx.array) else "numpy array"
        return f"{with_article(kind)} of {str(value.dtype).removeprefix('mlx.core.')} and shape {tuple(value.shape)}"
    return repr(value)


def name_of(dtype: mx.Dtype) -> str:
    """As a message names it: without MLX's module."""
    return str(dtype).removeprefix("mlx.core.")


def _without_value(error: ValueError, name: str) -> ValueError:
    if "function transformations" not in str(error):
        return error
    return ValueError(
        f"{name} is an array that mx.compile or mx.vmap replaces, so it has no value yet; pass a Python number, or "
        "make the call outside them"
    )


def check_size(name: str, value: Any, least: int, otherwise: str = "") -> int:
    """A whole number; `otherwise` says what else the argument takes."""
    number = as_int(value, name)
    if number is None or number < least:
        raise ValueError(f"{name} is {shown(value)}; expected a whole number from {least} on{otherwise}")
    return number


def check_whole(name: str, value: Any) -> int:
    number = as_int(value, name)
    if number is None:
        raise ValueError(f"{name} is {shown(value)}; expected a whole number")
    return number


def positive_ints(values: Any, name: str) -> tuple[int, ...]:
    """A tuple, a list or an array of one axis as Python ints; empty where it is none, or not all are positive."""
    if not isinstance(values, (tuple, list)) and getattr(values, "ndim", 0) != 1:
        return ()
    numbers = [as_int(value, name) for value in values]
    known = [number for number in numbers if number is not None and number > 0]
    return tuple(known) if len(known) == len(numbers) else ()


def check_block_size(size: Any, name: str = "block_size") -> tuple[int, int]:
    """(rows, columns) of a block."""
    one = as_int(size, name)
    given = positive_ints(size if one is None else (one, one), name)
    if len(given) != 2:
        raise ValueError(f"{name} is {shown(size)}; expected a positive int, or (rows, columns)")
    return given[0], given[1]
