"""Metal text of a kernel -> the C++ text of one simulator library."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from .mlx_text import KERNELS, include_folder, replacements
from .rewrite import Parameter, RewriteError, inline_includes, read_parameters, rewrite_threadgroup, set_constants
from .signature import ATTRIBUTES

PRELUDE = f'#include "{KERNELS}utils.h"\n'  # what mx.fast.metal_kernel puts before every kernel


def translate(
    text: str, kernel: str, arguments: str = "", constants: Mapping[str, bool | int] | None = None
) -> tuple[str, tuple[Parameter, ...]]:
    """The C++ text that runs `kernel<arguments>`, and the kernel's parameters.

    Raises:
        RewriteError: the text has something that the simulator does not understand.
    """
    return _translate(text, kernel, arguments, tuple((constants or {}).items()))


@functools.lru_cache(maxsize=256)
def _translate(
    text: str, kernel: str, arguments: str, constants: tuple[tuple[str, bool | int], ...]
) -> tuple[str, tuple[Parameter, ...]]:
    whole = inline_includes(PRELUDE + text, include_folder(), replacements(), "kernel")
    whole = set_constants(whole, dict(constants))
    parameters = tuple(read_parameters(whole, kernel))
    body = rewrite_threadgroup(whole)
    given = ",\n      ".join(_argument(parameter, kernel) for parameter in parameters)
    name = f"{kernel}<{arguments}>" if arguments else kernel
    entry = (
        '#line 1 "simulator entry"\n'
        'extern "C" void sim_run_lane(const sim_lane_position* lane, const sim_buffer* buffers) {\n'
        f"  {name}(\n      {given});\n}}\n"
    )
    return f'#include "metal_stdlib.h"\nusing namespace metal;\n#line 1 "prelude"\n{body}\n{entry}', parameters


def _argument(parameter: Parameter, kernel: str) -> str:
    if parameter.attribute == "buffer":
        kind = "reference" if parameter.reference else "pointer"
        return f"flextrace_sim::{kind}{{buffers[{parameter.index}].address}}"
    if parameter.attribute not in ATTRIBUTES:
        raise RewriteError(
            f"kernel {kernel!r}: the simulator has no attribute [[{parameter.attribute}]]; it knows buffer, "
            f"{', '.join(ATTRIBUTES)}"
        )
    kind, field = ATTRIBUTES[parameter.attribute]
    value = field if field.endswith("u") and field[:-1].isdigit() else f"lane->{field}"
    return f"flextrace_sim::triple{{{value}}}" if kind == "uint3" else value
