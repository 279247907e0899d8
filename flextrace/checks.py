"""Arguments -> errors: everything about shapes, dtypes and options that is wrong is said before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from flextrace.kernels import BACKENDS, Int8Rows, QKQuant
from flextrace.kernels.scalars import as_bool, as_float, as_int, name_of, shown
from flextrace.tracer.errors import with_article
from flextrace.tracer.nearest import nearest

from .int8 import Int8KV

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
LARGEST = float(mx.finfo(mx.float32).max)
OPTIONS: dict[str, tuple[type, ...]] = {
    "BACKEND": (str,),
    "NUM_THREADS": (int,),
    "ASYNC_COPY": (str,),
    "PIPELINE": (str,),
    "QK_QUANT": (str, QKQuant),
    "SMOOTH_K": (bool,),
    "SMOOTH_Q": (bool,),
}
CONVERSIONS: dict[type, Callable[[Any, str], Any]] = {int: as_int, bool: as_bool}
CHOICES: dict[str, tuple[str, ...]] = {
    "ASYNC_COPY": ("pipelined", "intrinsic"),
    "PIPELINE": ("fused", "staged"),
    "QK_QUANT": ("int8",),
}
_TILES = "flextrace chooses tile sizes for each call"
_LAUNCH = "flextrace chooses how its kernels are launched"
_BOUNDS = "flextrace derives it from the mask"
TORCH_OPTIONS: dict[str, str] = {  # torch's options -> why there is none here; with fwd_ or bwd_ before them, too
    **dict.fromkeys("BLOCK_M BLOCK_N BLOCK_M1 BLOCK_N1 BLOCK_M2 BLOCK_N2".split(), _TILES),
    **dict.fromkeys("SPARSE_Q_BLOCK_SIZE SPARSE_KV_BLOCK_SIZE".split(), "BLOCK_SIZE of create_block_mask says it"),
    **dict.fromkeys("num_warps num_stages num_consumer_groups kpack matrix_instr_nonkdim".split(), _LAUNCH),
    **dict.fromkeys("waves_per_eu USE_TMA SPLIT_KV PARTITION_SIZE".split(), _LAUNCH),
    **dict.fromkeys("ROWS_GUARANTEED_SAFE BLOCKS_ARE_CONTIGUOUS IS_DIVISIBLE SAFE_N_BOUNDARY".split(), _BOUNDS),
    **dict.fromkeys("HAS_FULL_BLOCKS SKIP_MASK_SCORE".split(), _BOUNDS),
    "PRESCALE_QK": "scores are scaled in float32 before the mod sees them",
    "FLOAT32_PRECISION": "float32 inputs are computed in float32",
    "FORCE_USE_FLEX_ATTENTION": "flextrace always runs the kernel made from the mods",
    "WRITE_DQ": "it belongs to torch's backward kernel",
    "OUTPUT_LOGSUMEXP": "pass return_lse=True",
    "OUTPUT_MAX": "pass return_aux=flex.AuxRequest(max_scores=True)",
    "SM_SCALE": "pass scale=",
    "GQA_SHARED_HEADS": "pass enable_gqa=True",
}
TORCH_BACKENDS = ("AUTO", "TRITON", "FLASH", "TRITON_DECODE")


Rows = mx.array | Int8Rows


def check_tensors(query: mx.array, key: Rows, value: Rows, enable_gqa: bool) -> None:
    """Raises TypeError or ValueError unless q, k and v fit together."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if isinstance(tensor, Int8Rows) and name != "query":
            _check_int8(name, tensor)
        elif isinstance(tensor, Int8KV):
            raise TypeError(f"{name} is an Int8KV; pass its rows: flex_attention(query, cache.key, cache.value)")
        elif not isinstance(tensor, mx.array):
            raise TypeError(f"{name} is {with_article(type(tensor).__name__)}; convert it with mx.array(...)")
        if len(tensor.shape) != 4:
            raise ValueError(f"{name} has shape {tensor.shape}; expected 4 axes: [batch, heads, length, head_dim]")
    if isinstance(value, Int8Rows) and not isinstance(key, Int8Rows):
        raise TypeError("value is in int8, key is not; give both as flex.Int8KV keeps them, or value.float32()")
    if query.dtype not in DTYPES or any(isinstance(x, mx.array) and x.dtype != query.dtype for x in (key, value)):
        remedy = "make all three float32, float16 or bfloat16 with .astype(...)"
        if isinstance(key, Int8Rows):
            remedy = "beside a key in int8 make query (and a value that is not) all float32, float16 or bfloat16"
        elif "int8" in (_name(key), _name(value)):
            remedy = "int8 needs its scales: pass flex.Int8Rows, or what flex.Int8KV keeps"
        raise TypeError(f"query, key and value are {_name(query)}, {_name(key)} and {_name(value)}; {remedy}")
    (b, hq, _, d), (bk, hkv, s, dk), (bv, hv, sv, _) = query.shape, key.shape, value.shape
    if d != dk:
        raise ValueError(f"head_dim of query is {d}, of key {dk}; they must be equal")
    if (hkv, s) != (hv, sv):
        raise ValueError(f"key has {hkv} heads of length {s}, value {hv} of length {sv}; they must be equal")
    if bk != bv or bk not in (b, 1):
        raise ValueError(f"batch sizes: query {b}, key {bk}, value {bv}; key and value need {b}, or 1 for all")
    if hq != hkv:
        if not enable_gqa:
            raise ValueError(
                f"query has {hq} heads, key and value have {hkv}; pass enable_gqa=True for grouped-query attention"
            )
        if hkv == 0 or hq % hkv:
            raise ValueError(f"with enable_gqa the {hq} query heads must be a multiple of the {hkv} key heads")


def checked_scale(scale: Any, head_dim: int) -> float:
    """The factor of the dot products. Raises ValueError."""
    if scale is None:
        return 1.0 / math.sqrt(max(1, head_dim))
    number = as_float(scale, "scale")
    if number is None or not abs(number) <= LARGEST:
        expected = "a finite number of float32, or None for 1 / sqrt(head_dim)"
        raise ValueError(f"scale is {shown(scale)}; expected {expected}")
    return number


def _check_int8(name: str, rows: Int8Rows) -> None:
    """Raises TypeError or ValueError unless the parts of ready-made int8 rows fit each other."""
    for part, array in rows._asdict().items():
        if not isinstance(array, mx.array) and not (part == "means" and array is None):
            raise TypeError(f"{name}.{part} is {with_article(type(array).__name__)}; expected an mx.array")
    if rows.values.dtype != mx.int8 or rows.scales.dtype != mx.float32:
        raise TypeError(f"{name} has {_name(rows)} and scales {_name(rows.scales)}; expected int8 and float32")
    batch_heads_length, columns = rows.shape[:-1], rows.shape[-1:]
    if rows.scales.shape != batch_heads_length:
        raise ValueError(f"{name}.scales has shape {rows.scales.shape}; expected one number a row {batch_heads_length}")
    if rows.means is not None:
        expected = (*batch_heads_length[:-1], 1, *columns)
        if rows.means.dtype != mx.float32 or rows.means.shape != expected:
            raise ValueError(f"{name}.means is {_name(rows.means)} {rows.means.shape}; expected float32 {expected}")


def _name(tensor: Rows) -> str:
    tensor = tensor.values if isinstance(tensor, Int8Rows) else tensor
    return name_of(tensor.dtype)


def check_options(options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The options with Python's numbers. Raises ValueError on an unknown one or a value that it does not take."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        backend = f'"{options}"' if isinstance(options, str) and options in BACKENDS else "..."
        raise TypeError(
            f'kernel_options is {shown(options)}; expected a dict: write kernel_options={{"BACKEND": {backend}}}'
        )
    checked: dict[str, Any] = {}
    for key, given in options.items():
        if key not in OPTIONS:
            raise ValueError(_unknown_option(key))
        types = OPTIONS[key]
        convert = CONVERSIONS.get(types[0])
        value = given if convert is None else convert(given, f"kernel option {key}")
        if not isinstance(value, types):
            taken = " or ".join(with_article(t.__name__) for t in types)
            call = "; write QKQuant()" if value is QKQuant else ""
            raise ValueError(f"kernel option {key} takes {taken}, not {shown(given)}{call}")
        if isinstance(value, str) and value not in CHOICES.get(key, (value,)):
            choices = CHOICES[key]
            raise ValueError(
                f"kernel option {key} is one of {', '.join(choices)}; got {value!r}{_nearest(value.lower(), choices)}"
            )
        if key == "BACKEND" and value in TORCH_BACKENDS:
            raise ValueError(
                f"kernel option BACKEND={value!r} is torch's; here it is one of {', '.join(BACKENDS)}: leave it out "
                "for the fastest that runs here"
            )
        checked[key] = value
    if not 1 <= checked.get("NUM_THREADS", 1) < 2**31:
        expected = "expected at least 1, and less than 2**31"
        raise ValueError(f"kernel option NUM_THREADS is {checked['NUM_THREADS']}; {expected}")
    return checked


def _unknown_option(key: object) -> str:
    name = str(key).removeprefix("fwd_").removeprefix("bwd_")
    for known in OPTIONS:
        if name == known:
            return f"unknown kernel option {key!r}: there is one {known!r} for both directions"
    for known, reason in TORCH_OPTIONS.items():
        if name.upper() == known.upper():
            return f"kernel option {key!r} is torch's and has no meaning here ({reason}); leave it out"
    return f"unknown kernel option {key!r}; known: {', '.join(OPTIONS)}{_nearest(str(key).upper(), tuple(OPTIONS))}"


def _nearest(word: str, known: tuple[str, ...]) -> str:
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near else ""
