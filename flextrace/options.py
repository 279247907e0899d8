"""kernel_options -> Options: every option is read, checked and put together here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import mlx.core as mx

from flextrace.kernels import BACKENDS, Int8Rows, QKQuant
from flextrace.kernels.scalars import as_bool, as_int, shown
from flextrace.tracer.errors import with_article
from flextrace.tracer.nearest import nearest


class Option(NamedTuple):
    """One option, as a row of the table.

    takes: the types of its value; parse: what Python's number of a value is, where it takes one; choices: the texts
    that it takes, all without them. backends: those that follow it; the others ignore it.
    sentence: what the docstring of flex_attention says of it.
    """

    takes: tuple[type, ...]
    backends: tuple[str, ...]
    sentence: str
    parse: Callable[[Any, str], Any] | None = None
    choices: tuple[str, ...] = ()


ALL, COMPILED, ON_METAL = tuple(BACKENDS), ("metal", "cuda", "simulator", "cpu"), ("metal", "simulator")
OPTIONS: dict[str, Option] = {
    "BACKEND": Option((str,), ALL, '"metal", "cuda", "simulator", "cpu" or "ops".'),
    "NUM_THREADS": Option((int,), ("cpu",), "how many threads the cpu backend takes.", as_int),
    "ASYNC_COPY": Option(
        (str,),
        ON_METAL,
        '"intrinsic" copies tiles of key and value by simdgroup_async_copy (metal and simulator; experimental: the '
        "intrinsic is undocumented; macOS 15 and earlier on M1 and M2; elsewhere a notice, and the default, "
        '"pipelined").',
        choices=("pipelined", "intrinsic"),
    ),
    "MATH": Option(
        (str,),
        ON_METAL,
        '"fast" takes Metal\'s fast exp, log, sqrt, tanh and sigmoid in a score_mod, for finite arguments (metal and '
        "simulator, fused; elsewhere nothing changes): tanh and sigmoid are then right to within 1e-6, in about 9 "
        'instructions instead of 40 by estimate; exp(x) to 3 + 2 |x| ulp. The default, "precise", is right to 1 ulp.',
        choices=("precise", "fast"),
    ),
    "PIPELINE": Option(
        (str,),
        COMPILED,
        '"staged" runs the stage kernels one after the other instead of the fused one, in quadratic memory (cpu, '
        "metal, cuda, simulator).",
        choices=("fused", "staged"),
    ),
    "QK_QUANT": Option(
        (str, QKQuant),
        COMPILED,
        '"int8" or a `QKQuant` multiplies query and key as int8, with key smoothed (not for the few rows of '
        "decode). See `QKQuant`.",
        choices=("int8",),
    ),
    "SMOOTH_K": Option(
        (bool,),
        COMPILED,
        "False, beside QK_QUANT, leaves key as it is; True by itself smooths and does not quantise.",
        as_bool,
    ),
    "SMOOTH_Q": Option((bool,), COMPILED, "True, beside QK_QUANT, smooths query too.", as_bool),
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


@dataclass(frozen=True, slots=True)
class Options:
    """What kernel_options ask for.

    backend: its name; None leaves it to FLEXTRACE_BACKEND and MLX's default device.
    asked: the rest, by the fields of AttentionCall.
    """

    backend: str | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)


NO_OPTIONS = Options()


def options_of(kernel_options: Mapping[str, Any] | None, key: mx.array | Int8Rows) -> Options:
    """The options of a call, whose key may be in int8.

    Raises:
        ValueError, TypeError: one is unknown, does not take its value, or does not go with another or with such a key.
    """
    checked = check_options(kernel_options)
    quant, smooth_k = _beside_int8(checked) if isinstance(key, Int8Rows) else quant_options(checked)
    asked: dict[str, Any] = {"quant": quant, "smooth_k": smooth_k}
    asked |= {"threads": checked.get("NUM_THREADS", 0), "async_copy": checked.get("ASYNC_COPY") == "intrinsic"}
    asked |= {"staged": checked.get("PIPELINE") == "staged", "fast_math": checked.get("MATH") == "fast"}
    return Options(checked.get("BACKEND"), asked)


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
        option = OPTIONS[key]
        value = given if option.parse is None else option.parse(given, f"kernel option {key}")
        if not isinstance(value, option.takes):
            taken = " or ".join(with_article(t.__name__) for t in option.takes)
            call = "; write QKQuant()" if value is QKQuant else ""
            raise ValueError(f"kernel option {key} takes {taken}, not {shown(given)}{call}")
        if isinstance(value, str) and option.choices and value not in option.choices:
            near = _nearest(value.lower(), option.choices)
            raise ValueError(f"kernel option {key} is one of {', '.join(option.choices)}; got {value!r}{near}")
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


def quant_options(options: Mapping[str, Any]) -> tuple[QKQuant | None, bool]:
    """How q and k are quantised, or None; and whether k is smoothed. "SMOOTH_K" and "SMOOTH_Q" go before the object.

    Raises:
        ValueError: "SMOOTH_Q" without "QK_QUANT".
    """
    asked = options.get("QK_QUANT")
    if asked is None:
        if options.get("SMOOTH_Q"):
            raise ValueError(
                'kernel option SMOOTH_Q smooths what is quantised; add "QK_QUANT": "int8", or leave it out'
            )
        return None, bool(options.get("SMOOTH_K", False))
    quant = asked if isinstance(asked, QKQuant) else QKQuant()
    changes = {name.lower(): options[name] for name in ("SMOOTH_K", "SMOOTH_Q") if name in options}
    quant = replace(quant, **changes)
    return quant, quant.smooth_k


def _beside_int8(options: Mapping[str, Any]) -> tuple[None, bool]:
    """The same where k is in int8 already: nothing is left to ask for.

    Raises:
        ValueError: options that ask for something else.
    """
    for name in ("QK_QUANT", "SMOOTH_K", "SMOOTH_Q"):
        asked = options.get(name)
        by_rows = isinstance(asked, QKQuant) and asked.granularity == "row" and not asked.smooth_q
        if asked and asked != "int8" and not by_rows:
            raise ValueError(
                f"kernel option {name}={asked!r} does not go with a key in int8, which was rounded by rows before; "
                "leave it out (Int8KV says how it smooths), or pass *cache.dequantised()"
            )
    return None, False
