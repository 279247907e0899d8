"""Stage, formulas -> Metal text: what MLX's metal_kernel takes for a stage kernel of `stages/`."""

from __future__ import annotations

from ...spec import Formulas
from ..generate import NO_MODS, mod_header
from ..mod.captures import are_packed, passed_on
from ..text import KernelText, texts_of

_LISTS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
# Stage -> (inputs with strides, inputs without, outputs), as its body names them.
STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "matmul": (("a", "b"), ("params",), ("out",)),
    "scale": (("x",), ("params",), ("out",)),
    "score_mod": (("scores",), ("params", *_LISTS), ("out",)),
    "softmax": (("x",), ("params",), ("weights", "max_scores", "sums")),
    "block_mask": ((), ("params",), _LISTS),
    "block_sparse_matmul": (("a", "b"), ("params", *_LISTS), ("out",)),
    "attention_output": (("product", "max_scores", "sums"), ("params",), ("out", "lse")),
}
WITH_MODS = ("score_mod", "block_mask")


def stage_text(stage: str, mods: Formulas = NO_MODS) -> KernelText:
    """The kernel of that name in STAGES; only score_mod and block_mask have mods.

    Raises:
        ValueError: the mods capture more arrays than a Metal kernel has buffers, be they packed.
    """
    strided, plain, outputs = STAGES[stage]
    arrays = mods.arrays
    packed = are_packed(arrays, 2 * len(strided) + len(plain) + len(outputs))
    hole = mod_header(mods, packed=packed) if stage in WITH_MODS else None
    header, body = texts_of(f"stages/{stage}.metal", hole, passed_on(arrays, packed))
    inputs = (*strided, *plain, *(f"array{slot}" for slot in range(len(arrays))))
    return KernelText(stage, header, body, inputs, outputs, arrays, packed)
