"""Pickles of before 0.1.0: what can no longer be read says so and names the remedy; what can is read as ever."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest

import flextrace as flex

MOD = (
    b"cflextrace.mod\n_unpickled\n(Vmask_mod\nVnear\n"
    b"Vdef mod(b, h, q_idx, kv_idx):\\u000a    return kv_idx <= q_idx\\u000a\n(dtR."
)
MASK = (  # of %s, in blocks of 128
    b"ccopy_reg\n_reconstructor\n(cflextrace.block_mask\nBlockMask\nc__builtin__\nobject\nNtR(d"
    b"Vshape\n(I1\nI1\nI256\nI256\ntsVBLOCK_SIZE\n(I128\nI128\ntsVmask_mod\n%ssVimplied\nI01\nsVoffset\nI0\ns"
    b"V_renumbered\nc__builtin__\nfrozenset\n((ltRsV_made\nNsV_lists\n(dsb."
)
KEYS = b"ccopy_reg\n_reconstructor\n(cflextrace.kv_cache\nInt8KV\nc__builtin__\nobject\nNtR(dVstep\nI256\nsb."
RUNS = b"ccopy_reg\n_reconstructor\n(cflextrace.block_input\nBlockRanges\nc__builtin__\ntuple\n(NNNNttR."
OLD = {
    "a mod": (MOD, "flextrace.mod._unpickled: make the mod from its function, and pickle it"),
    "a BlockMask of such a mod": (MASK % MOD[:-1], "flextrace.mod._unpickled: make the mod from its function"),
    "an Int8KV": (KEYS, "flextrace.kv_cache.Int8KV: make the Int8KV from its keys and values"),
    "runs of blocks": (RUNS, "flextrace.block_input.BlockRanges: make the runs with BlockMask.to_ranges"),
}


@pytest.mark.parametrize("what", OLD)
def test_an_old_pickle_says_what_to_make_anew(what: str) -> None:
    data, said = OLD[what]
    with pytest.raises(pickle.UnpicklingError, match="this pickle is of a flextrace before 0.1.0, it names ") as error:
        pickle.loads(data)
    assert said in str(error.value)


def test_an_old_pickle_that_names_a_mod_of_a_module_is_read() -> None:
    made = flex.create_block_mask(flex.mods.causal, None, None, 256, 256)
    assert pickle.loads(MASK % b"cflextrace.mods.masks\ncausal\n") == made


def test_in_a_new_process_the_error_is_the_same() -> None:
    """Where nothing has imported flextrace but the pickle."""
    program = f"import pickle; pickle.loads({MOD!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "UnpicklingError: this pickle is of a flextrace before 0.1.0" in done.stderr.splitlines()[-1]


def test_a_module_that_is_no_more_has_nothing_else() -> None:
    former = importlib.import_module("flextrace.mod")
    with pytest.raises(AttributeError, match="'flextrace.mod' is no more and has no attribute 'score_mod'"):
        _ = former.score_mod


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_now_is_read(protocol: int) -> None:
    limit = 3
    near = flex.mask_mod(lambda b, h, q_idx, kv_idx: q_idx - kv_idx < limit)
    again = pickle.loads(pickle.dumps(near, protocol))
    assert again(0, 0, 5, 3) and not again(0, 0, 6, 3)
