"""The CUDA text of mods, run on the host element by element, is what plain Python gives."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import zoo

import flextrace as flex
from flextrace.decorators import bound
from flextrace.kernels.call import Mods
from flextrace.kernels.cuda.generate import FOLDER, HOLE, assignments, mod_header
from flextrace.kernels.gpu.arguments import captured_arrays, words_of_captures
from flextrace.kernels.gpu.extremes import looked_up
from flextrace.kernels.template.assemble import assemble
from flextrace.kernels.toolchain import find_compiler

B, H, Q, KV = 2, 3, 21, 40
HOST = Path(__file__).parents[2] / "apparatus" / "cuda" / "intrinsics.h"
NO_PTX = (
    "#define asm(...)\n#define __cvta_generic_to_shared(at) 0\n"  # approximate functions and 16 bits are not asked for
)

_RUN = """
extern "C" void run(const void* const* arrays, const int* words, const float* scores, float* out) {{
  Mods mods;
{assigned}
  for (int b = 0; b < {B}; b++) for (int h = 0; h < {H}; h++) for (int q = 0; q < {Q}; q++) {{
    const auto score_mod = mods.score_mod(b, h, q);
    const auto mask_mod = mods.mask_mod(b, h, q);
    for (int k = 0; k < {KV}; k++, out++, scores++) *out = HAS_SCORE_MOD ? score_mod(*scores, k) : float(mask_mod(k));
  }}
}}
extern "C" int state(const void* const* arrays, const int* words, int b, int h, int q0, int q1, int k0, int k1) {{
  Mods mods;
{assigned}
  return mods.tile_state(b, h, h, q0, q1, k0, k1);
}}
"""


class OnHost:
    """A mod's CUDA text as a shared library."""

    def __init__(self, mods: Mods, folder: Path) -> None:
        self.arrays = [np.array(x) for x in captured_arrays(mods, False)]
        lines = assignments(mods.formulas, ())
        pointers = [
            line.replace(f"= array{i};", f"= (decltype(mods.array{i}))arrays[{i}];") for i, line in lines.arrays
        ]
        words = itertools.count()
        numbers = [line.format(f"words[{next(words)}]") for line in lines.numbers]
        sizes = [line.format(f"words[{next(words)}]") for line in lines.sizes]
        assigned = "\n".join(f"  {line}" for line in (*pointers, *numbers, *sizes))
        text = assemble(FOLDER, HOLE, {HOLE: mod_header(mods.formulas, False)})
        source = f'#include "{HOST}"\n{NO_PTX}{text}{_RUN.format(assigned=assigned, B=B, H=H, Q=Q, KV=KV)}'
        (folder / "mod.cpp").write_text(source, encoding="ascii")
        compiler = find_compiler(None)
        assert compiler is not None
        command = [compiler.path, "-std=c++17", "-O1", "-fwrapv", "-ffp-contract=off", "-fPIC", "-shared", "-w"]
        subprocess.run([*command, "mod.cpp", "-o", "mod.so"], cwd=folder, check=True)
        self.library = ctypes.CDLL(str(folder / "mod.so"))
        self.words = (ctypes.c_int * 64)(*words_of_captures(mods))
        self.addresses = (ctypes.c_void_p * 32)(*(array.ctypes.data for array in self.arrays))

    def __call__(self, scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        out = np.empty_like(scores)
        self.library.run(
            self.addresses, self.words, scores.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p)
        )
        return out

    def state(self, *box: int) -> int:
        return int(self.library.state(self.addresses, self.words, *box))


@pytest.mark.sampled(10)
@pytest.mark.parametrize("entry", zoo.ZOO.values(), ids=str)
def test_the_zoo_element_by_element(entry: zoo.Entry, tmp_path: Path) -> None:
    mod = entry.make(B, H, Q, KV, np.random.default_rng(1))
    plain = entry.make(B, H, Q, KV, np.random.default_rng(1), reference.array)
    score = flex.score_mod(mod) if entry.kind == "score" else None
    mods = bound(score, flex.mask_mod(mod) if entry.kind == "mask" else None)
    host = OnHost(mods, tmp_path)
    scores = np.random.default_rng(2).normal(size=(B, H, Q, KV)).astype(np.float32)
    got = host(scores)
    places = list(np.ndindex(scores.shape))
    if entry.kind == "score":
        want = np.array([plain(float(scores[at]), *at) for at in places], np.float64)
        np.testing.assert_allclose(got.reshape(-1), want, rtol=2e-5, atol=2e-5)
    else:
        want = np.array([bool(plain(*at)) for at in places]).reshape(scores.shape)
        np.testing.assert_array_equal(got != 0, want)
        for b, q0, k0 in itertools.product(range(B), range(0, Q, 8), range(0, KV, 16)):
            q1, k1 = min(q0 + 8, Q), min(k0 + 16, KV)
            inside = want[b, H - 1, q0:q1, k0:k1]
            said = host.state(b, H - 1, q0, q1 - 1, k0, k1 - 1)
            assert said == 1 or ((said == 2) == inside.all() and (said == 0) == (not inside.any()))


def test_the_slots_whose_blocks_are_read_are_those_that_a_mask_looks_up() -> None:
    ids = flex.mods.document(np.zeros(300, np.int32).tolist())
    assert looked_up(bound(None, ids).formulas) != () and looked_up(bound(None, flex.mods.causal).formulas) == ()
