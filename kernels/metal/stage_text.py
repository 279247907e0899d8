"""Stage, formulas -> Metal text: what MLX's metal_kernel takes for a stage kernel of `stages/`."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

from flextrace.tracer import ArrayCapture

from ..assemble import assemble, header_and_body
from ..spec import Formulas
from .captures import are_packed, passed_on
from .generate import FOLDER, NO_MODS, mod_header

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


@dataclass(frozen=True)
class StageText:
    """One stage kernel, for one pair of mods."""

    stage: str
    header: str
    body: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arrays: tuple[ArrayCapture, ...]
    packed: bool  # the arrays are, as captures.py has it

    @functools.cached_property
    def name(self) -> str:
        """With a hash of the text: MLX up to 0.32.0 ran stale code under an equal name."""
        return f"flextrace_{self.stage}_{hashlib.sha256((self.header + self.body).encode()).hexdigest()[:16]}"


def stage_text(stage: str, mods: Formulas = NO_MODS) -> StageText:
    """The kernel of that name in STAGES; only score_mod and block_mask have mods.

    Raises:
        ValueError: the mods capture more arrays than a Metal kernel has buffers, be they packed.
    """
    strided, plain, outputs = STAGES[stage]
    arrays = mods.arrays
    packed = are_packed(arrays, 2 * len(strided) + len(plain) + len(outputs))
    passed = "".join(f", {name}" for name in passed_on(arrays, packed))
    hole = {"mod/mod.h": mod_header(mods, packed=packed)} if stage in WITH_MODS else {}
    header, body = header_and_body(assemble(FOLDER, f"stages/{stage}.metal", hole))
    return StageText(
        stage,
        header,
        body.replace(" CAPTURED_ARRAYS", passed),
        (*strided, *plain, *(f"array{slot}" for slot in range(len(arrays)))),
        outputs,
        arrays,
        packed,
    )
