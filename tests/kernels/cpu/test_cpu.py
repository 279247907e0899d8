"""The cpu backend's own parts: assembling, the compiler, the cache, which tiles are visited, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from calls import attention_call, attention_spec

import flextrace as flex
from flextrace import stages
from flextrace.cache import Store
from flextrace.doctor import report as doctor
from flextrace.kernels import backend_for, cpu, toolchain
from flextrace.kernels.cpu import CompileError, CpuBackend
from flextrace.kernels.loading import state
from flextrace.kernels.template.assemble import assemble
from flextrace.tracer import trace

FOLDER = Path(cpu.__file__).parent


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


# ---- text --------------------------------------------------------------------------------------------------------


def test_the_kernel_compiles_as_it_lies() -> None:
    compiler = toolchain.find_compiler()
    assert compiler is not None
    for file in sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.cpp")):
        command = [compiler.path, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-psabi", file]
        done = subprocess.run([*command, "-march=native"], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_kernel_files_are_ascii() -> None:
    for file in [*FOLDER.rglob("*.h"), *FOLDER.rglob("*.cpp")]:
        file.read_text(encoding="ascii")


def test_assemble_inlines_each_include_once_and_keeps_lines(tmp_path: Path) -> None:
    (tmp_path / "k.cpp").write_text('#include "a.h"\n#include <math.h>\n#include "b.h"\nint k;\n')
    (tmp_path / "a.h").write_text("#pragma once\nint a;\n")
    (tmp_path / "b.h").write_text('#pragma once\n#include "a.h"\n#include "mod.h"\nint b;\n')
    text = assemble(tmp_path, "k.cpp", {"mod.h": "int mod;\n"})
    assert text.splitlines() == [
        '#line 1 "k.cpp"',
        '#line 1 "a.h"',
        "",
        "int a;",
        '#line 2 "k.cpp"',
        "#include <math.h>",
        '#line 1 "b.h"',
        "",
        "",
        '#line 1 "mod.h (generated)"',
        "int mod;",
        '#line 4 "b.h"',
        "int b;",
        '#line 4 "k.cpp"',
        "int k;",
    ]


def test_source_is_the_whole_kernel() -> None:
    text = flex.mask_mod(causal).source("cpu")
    assert "fx::le(kv_idx, q_idx)" in text
    assert 'extern "C"' in text
    assert '#include "' not in text
    with pytest.raises(ValueError, match="unknown backend 'tpu'"):
        flex.mask_mod(causal).source("tpu")


# ---- float32, step by step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mod", "expected"),
    [
        (lambda score, b, h, q_idx, kv_idx: mx.exp(score) - 3e38, np.inf),
        (lambda score, b, h, q_idx, kv_idx: mx.exp(score) - mx.exp(score), np.nan),
        (lambda score, b, h, q_idx, kv_idx: np.exp2(score * 1.5) - 3e38, np.inf),
        (lambda score, b, h, q_idx, kv_idx: mx.expm1(score) - 3e38, np.inf),
        (lambda score, b, h, q_idx, kv_idx: score * 1e38 - 3e38, np.inf),
    ],
)
def test_what_overflows_is_infinite_before_more_is_added(mod: Any, expected: float) -> None:
    """Scores around 89: a product that is fused with the subtraction would come out finite."""
    scores = mx.full((1, 1, 2, 40), 89.0)
    got = stages.score_mod(scores, flex.score_mod(mod), backend="cpu")
    np.testing.assert_array_equal(got, np.full(scores.shape, expected, np.float32))


# ---- compiler ------------------------------------------------------------------------------------------------------


def test_a_compile_error_shows_the_compiler_and_the_command(tmp_path: Path) -> None:
    compiler = toolchain.find_compiler()
    assert compiler is not None
    (tmp_path / "bad.cpp").write_text("int f( { return 1; }\n")
    with pytest.raises(CompileError, match=r"failed \(1\):\n.*bad.cpp:1(.|\n)*command: "):
        compiler.build(tmp_path / "bad.cpp", tmp_path / "bad.so")
    gone = toolchain.Compiler(str(tmp_path / "gone"), (), "")
    with pytest.raises(CompileError, match=r"cannot run .*gone.*install a C\+\+17 compiler"):
        gone.build(tmp_path / "bad.cpp", tmp_path / "bad.so")


def test_the_fingerprint_follows_compiler_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    first = toolchain.find_compiler()
    assert first is not None
    toolchain.find_compiler.cache_clear()
    monkeypatch.setattr(toolchain, "cpu_features", lambda: "another machine")
    second = toolchain.find_compiler()
    toolchain.find_compiler.cache_clear()
    assert second is not None
    assert first.fingerprint != second.fingerprint


def test_a_kernel_that_cannot_be_loaded_names_the_remedy(tmp_path: Path) -> None:
    from flextrace.kernels.cpu.launch import load

    (tmp_path / "kernel.so").write_bytes(b"not a library")
    with pytest.raises(RuntimeError, match="cannot be loaded.*noexec.*FLEXTRACE_CACHE_DIR.*CXX"):
        load(tmp_path / "kernel.so", "flextrace_attention")


def fake_compiler(folder: Path, body: str) -> str:
    """A compiler that answers --version and ends with status 0; `body` has its output's path in $out."""
    path = folder / "c++"
    path.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo fake 1.0; exit 0; fi\n'
        f'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then out="$2"; fi; shift; done\n{body}\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "body, message",
    [
        ("exit 0", r"c\+\+, of CXX=.*, ended with status 0 and wrote no .*kernel.so"),
        ("echo junk > $out", "the compiled kernel cannot be loaded: .* name another C.. compiler in CXX"),
        (f"cp {next(Path('/').glob('usr/lib/*/libm.so.6'), '')} $out", "cannot be loaded: .*flextrace_attention.*CXX"),
    ],
    ids=["nothing", "junk", "another library"],
)
def test_a_compiler_that_ends_well_without_a_kernel_is_told_and_keeps_nothing(
    fresh_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    if body.startswith("cp  "):
        pytest.skip("there is no libm.so.6 to pass off as a kernel")
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, body))
    q = mx.ones((1, 1, 4, 8))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            flex.flex_attention(q, q, q, kernel_options={"BACKEND": "cpu"})
        assert list(fresh_cache.glob("kernels/*/*")) == []
    monkeypatch.delenv("CXX")
    assert mx.all(flex.flex_attention(q, q, q, kernel_options={"BACKEND": "cpu"}) == 1)


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("form", ["{wrapper} c++", "{wrapper} -v 'c++'  -DALSO=1", "{spaced}", " {wrapper}  c++ "])
def test_cxx_is_read_as_make_reads_it(
    fresh_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A program before the compiler, options behind it, and a path with a space in it, which make cannot take."""
    log = tmp_path / "log"
    wrapper = script(tmp_path / "ccache", f'echo "$@" >> "{log}"\n[ "$1" = -v ] && shift\nexec "$@"')
    spaced = script(tmp_path / "a folder" / "c++", f'echo c++ "$@" >> "{log}"\nexec c++ "$@"')
    monkeypatch.setenv("CXX", form.format(wrapper=wrapper, spaced=spaced))
    q = mx.ones((1, 1, 4, 8))
    assert mx.all(flex.flex_attention(q, q, q, kernel_options={"BACKEND": "cpu"}) == 1)
    assert "-o" in log.read_text() and ("-DALSO=1" in log.read_text()) is ("ALSO" in form)
    (entry,) = Store().entries()
    assert ("-DALSO=1" in entry.manifest["flags"]) is ("ALSO" in form) and "-O2" in entry.manifest["flags"]


def test_the_fingerprint_follows_what_a_wrapper_runs(tmp_path: Path) -> None:
    wrapper, first = script(tmp_path / "ccache", 'exec "$@"'), script(tmp_path / "first", "exit 0")
    found = {name: toolchain.find_compiler(f"{wrapper} {name}") for name in (str(first), "c++", "c++ -m64")}
    assert None not in found.values() and len({c.fingerprint for c in found.values() if c is not None}) == 3
    toolchain.find_compiler.cache_clear()
    script(first, "exit 0 # another version")
    again = toolchain.find_compiler(f"{wrapper} {first}")
    assert again is not None and again.fingerprint != found[str(first)].fingerprint  # type: ignore[union-attr]
    toolchain.find_compiler.cache_clear()


UNUSABLE = {
    "not there": ("no-such-compiler -m64", "found no C.. compiler: CXX='no-such-compiler -m64' names no program that"),
    "a quote left open": ("c++ '-m64", 'found no C.. compiler: CXX="c.. \'-m64" names no program that can be run'),
    "a folder": ("/usr/bin", "found no C.. compiler: CXX='/usr/bin' names no program that can be run"),
    "no compiler": ("false -x", "false, of CXX='false -x', failed .1.:"),
    "no program": ("{garbage}", "cannot run .*garbage, of CXX='.*garbage',: .*; unset CXX, or name a C..17 compiler"),
    "an option it lacks": ("c++ --no-such-option", "of CXX='c.. --no-such-option', failed .1.:\n.*no-such-option"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_cxx_is_named_with_its_value(
    fresh_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    value, message = UNUSABLE[case]
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x7fELF no program")
    garbage.chmod(0o755)
    monkeypatch.setenv("CXX", value.format(garbage=garbage))
    q = mx.ones((1, 1, 4, 8))
    with pytest.raises((flex.BackendUnavailable, CompileError), match=message):
        flex.flex_attention(q, q, q, kernel_options={"BACKEND": "cpu"})
    checks = {check.name: check for check in doctor.environment()}
    assert checks["C++ compiler"].status == ("ok" if case in ("no compiler", "an option it lacks") else "not available")


def test_a_blank_cxx_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert toolchain.find_compiler("  ") == toolchain.find_compiler(None)


def test_a_compilers_words_in_another_encoding_are_shown(tmp_path: Path) -> None:
    """Latin-1, as a compiler speaks in such a locale, or quotes from a source."""
    speaker = script(tmp_path / "c++", "printf 'erreur: d\\351clar\\351\\n' >&2; printf '\\377 1.0\\n'; exit 1")
    compiler = toolchain.find_compiler(str(speaker))
    assert compiler is not None
    (tmp_path / "a.cpp").write_text("int a;")
    with pytest.raises(CompileError, match="erreur: d\ufffdclar\ufffd"):
        compiler.build(tmp_path / "a.cpp", tmp_path / "a.so")
    assert compiler.version() == "\ufffd 1.0"


# ---- disk ----------------------------------------------------------------------------------------------------------


def test_an_entry_reads_well_and_a_damaged_one_is_rebuilt(fresh_cache: Path) -> None:
    import json

    q = mx.ones((1, 1, 4, 8))
    expected = flex.flex_attention(q, q, q, block_mask=causal)
    (entry,) = fresh_cache.glob("kernels/*/*")
    assert {file.name for file in entry.iterdir()} == {"manifest.json", "kernel.cpp", "kernel.so"}
    manifest = json.loads((entry / "manifest.json").read_text())
    assert manifest["mask_mod"]["expression"] == ["kv_idx <= q_idx"]
    assert manifest["mask_mod"]["name"] == "causal"
    assert manifest["mask_mod"]["source"][-1] == "    return q_idx >= kv_idx"
    assert manifest["score_mod"] is None
    library = entry / "kernel.so"
    program = f"""
import mlx.core as mx, flextrace as flex
from flextrace.kernels import backend_for
q = mx.ones((1, 1, 4, 8))
out = flex.flex_attention(q, q, q, block_mask=flex.mask_mod({causal.__name__}))
assert mx.all(out == 1)
print(backend_for("cpu").built)
"""
    script = fresh_cache.parent / "again.py"
    script.write_text("def causal(b, h, q_idx, kv_idx):\n    return q_idx >= kv_idx\n" + program)

    def compiled() -> int:
        done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
        return int(done.stdout)

    assert compiled() == 0  # a new process takes it from disk
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.unlink()  # this process has the old file mapped
    library.write_bytes(data)
    assert compiled() == 1  # one flipped bit: rebuilt
    assert compiled() == 0
    assert mx.all(expected == 1)


def test_a_cache_that_is_cleared_before_the_kernel_is_loaded_fails_no_call(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flextrace.cache import Store
    from flextrace.kernels import registry

    q = mx.ones((1, 1, 4, 8))
    real = Store.get_or_build

    def cleared(store: Store, *rest: Any) -> Any:
        entry = real(store, *rest)
        store.clear()
        return entry

    for get_or_build in (real, cleared):
        monkeypatch.setattr(Store, "get_or_build", get_or_build)
        monkeypatch.setattr(registry, "made", {})
        assert mx.all(flex.flex_attention(q, q, q, block_mask=causal) == 1)
    assert list(fresh_cache.glob("kernels/*/*")) == []


def test_a_kernel_is_taken_from_memory_from_disk_or_built(fresh_cache: Path) -> None:
    spec = attention_spec(None, trace(causal, "mask_mod"))
    first, second = CpuBackend(), CpuBackend()
    assert first.load(spec) is first.load(spec) and first.built == 1
    assert state(first, spec.mods) == "memory" and state(second, spec.mods) == "disk"
    assert second.load(spec).key == first.load(spec).key and second.built == 0


# ---- tiles and memory ------------------------------------------------------------------------------------------------


def tile_counts(mask: Any, n: int, block_mask: bool) -> dict[str, float]:
    q = mx.ones((1, 2, n, 16))
    mx.eval(q)
    mod = flex.mask_mod(mask)
    blocks = flex.create_block_mask(mod, None, None, n, n).blocks if block_mask else None
    call = attention_call(q, q, q, 1.0, None, mod.bind(), blocks)
    backend: Any = backend_for("cpu")
    counts = np.zeros(4, np.int64)
    backend.load(backend.spec(call)).run(call, counts)
    return dict(zip(("skipped", "masked", "full", "evaluated"), counts / counts[:3].sum(), strict=True))


@pytest.mark.parametrize("block_mask", [False, True], ids=["mask_mod", "BlockMask"])
def test_empty_tiles_are_skipped_and_full_ones_run_without_the_mask(block_mask: bool) -> None:
    def window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return abs(q_idx - kv_idx) < 100

    share = tile_counts(causal, 4096, block_mask)
    assert share["skipped"] == pytest.approx(0.5, abs=0.03)
    assert share["masked"] < 0.05
    assert share["full"] == pytest.approx(0.5, abs=0.05)
    assert tile_counts(window, 4096, block_mask)["skipped"] > 0.9
    assert tile_counts(flex.noop_mask, 512, block_mask)["full"] == 1.0
    assert tile_counts(lambda b, h, q_idx, kv_idx: q_idx < 0, 512, block_mask)["skipped"] == 1.0


PEAK = """
import mlx.core as mx, flextrace as flex
from flextrace.bench.measure import PeakMemory
mask = flex.mask_mod(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx and q_idx - kv_idx < 64)
small = mx.ones((1, 1, 8, 64))
mx.eval(flex.flex_attention(small, small, small, block_mask=mask))
n = 32768
q, k, v = (mx.random.normal((1, 1, n, 64)) for _ in range(3))
mx.eval(q, k, v)
peak = PeakMemory()
out = flex.flex_attention(q, k, v, block_mask=mask)
mx.eval(out)
print(peak.bytes() - out.nbytes)
"""


def test_memory_grows_with_the_length_not_its_square(tmp_path: Path) -> None:
    script = tmp_path / "peak.py"
    script.write_text(PEAK)
    environment = {**os.environ, "FLEXTRACE_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True, env=environment)
    assert int(done.stdout) < 50e6  # the scores alone would be 4.3 GB


def test_an_unwritable_cache_still_computes_with_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    script = tmp_path / "program.py"
    script.write_text(
        "import warnings, mlx.core as mx, flextrace as flex\n"
        "q = mx.ones((1, 1, 4, 8))\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    for mask in (None, lambda b, h, q_idx, kv_idx: q_idx >= kv_idx):\n"
        "        assert mx.all(flex.flex_attention(q, q, q, block_mask=mask) == 1)\n"
        "assert [w.category for w in caught] == [flex.CacheWarning], caught\n"
    )
    environment = {**os.environ, "FLEXTRACE_CACHE_DIR": str(tmp_path / "file" / "cache")}
    subprocess.run([sys.executable, str(script)], check=True, env=environment)


def test_a_compiler_that_goes_away_is_named(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend was made while it was there."""
    backend_for("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(flex.BackendUnavailable, match="found no C.. compiler: CXX='no-such-compiler'"):
        flex.flex_attention(*[mx.ones((1, 1, 3, 8))] * 3, kernel_options={"BACKEND": "cpu"})
