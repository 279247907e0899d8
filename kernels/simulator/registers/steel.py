"""Head dim, dtype -> MLX's attention kernel as text for the stand-in's compiler.

Nothing of MLX's text is kept here: `steel_attention.h` is read where pip put it, as mlx_attention.py does.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from ..translate.mlx_text import KERNELS, include_folder, replacements
from ..translate.rewrite import inline_includes, set_constants

HEADER = Path(__file__).parent / "steel.h"
STEEL = f'#include "{KERNELS}steel/attn/kernels/steel_attention.h"\n'
LEFT_OUT = ("utils.h", "steel/utils.h", "steel/utils/type_traits.h")

# The launch that `mx.fast.scaled_dot_product_attention` makes of whole tiles.
CALL = """
extern "C" __attribute__((amdgpu_kernel)) void steel(const device {T}* q, const device {T}* k, const device {T}* v,
                                                     device {T}* out, const constant AttnParams* params) {{
  const uint index = __builtin_amdgcn_workitem_id_x();
  attention<{T}, 32, {BK}, {D}, {D}, 4, 1, float, float>(
      q, k, v, out, params, 0, 0, 0, 0, index % 32, index / 32,
      metal::uint3{{__builtin_amdgcn_workgroup_id_x(), __builtin_amdgcn_workgroup_id_y(),
                   __builtin_amdgcn_workgroup_id_z()}},
      metal::uint3{{index, 0, 0}});
}}
"""


def steel_text(head_dim: int, element: str) -> str:
    """C++, to be compiled behind library.h. Raises FileNotFoundError where the installed mlx has no headers."""
    constants = dict.fromkeys(("has_mask", "has_sinks", "save_lse", "do_causal"), False)
    whole = set_constants(_headers(), constants | {"align_Q": True, "align_K": True})
    return whole + CALL.format(T=element, D=head_dim, BK=32 if head_dim < 128 else 16)


@functools.cache
def _headers() -> str:
    """MLX's text in words that C++ has: no attributes, address spaces of pointers and of threadgroup memory only."""
    others = replacements() | {KERNELS + name: "" for name in LEFT_OUT}
    text = HEADER.read_text(encoding="ascii") + inline_includes(STEEL, include_folder(), others, "kernel")
    text = re.sub(r"\b(int2|short2)\(((?:[^()]|\([^()]*\))*)\)", r"\1{\2}", text)
    text = re.sub(r"#include <[^>]*>", "", text)
    text = re.sub(r"\[\[[^\]]*\]\]", "", text)
    text = re.sub(r"\b(static (?:constexpr|const)(?: int)?|constexpr|static) constant\b", r"\1", text)
    shared = r"\1[[clang::loader_uninitialized]] static threadgroup \2"
    return re.sub(r"^( +)threadgroup (\w+ \w+\[[^\]]*\];)", shared, text, flags=re.M)
