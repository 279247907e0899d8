"""`flextrace cache` and `flextrace warm`, through typer's runner and in real processes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from cli_notes import NOTES, flextrace
from rich.console import Console
from typer.testing import CliRunner

from flextrace import flex_attention
from flextrace.cache import CacheWarning, Store, fallback, key_of
from flextrace.cli import app
from flextrace.commands.cache import bytes_of
from flextrace.commands.exits import CommandError
from flextrace.show.cache_table import cache_table, grouped, human_size, rows
from flextrace.show.terminal import print_table

CALL = """
import json, sys
import mlx.core as mx
import flextrace as flex
from flextrace.kernels import backend_for
from notes import alibi, banded

mx.random.seed(0)
q = mx.random.normal((2, 2, 40, 32)).astype(mx.float16)
options, with_blocks = json.loads(sys.argv[1])
mask = flex.create_block_mask(banded, None, None, 40, 40) if with_blocks else banded
flex.flex_attention(q, q, q, alibi, mask, kernel_options=options)
backend = backend_for(options["BACKEND"])
print(json.dumps(backend.built))
"""


def run(*arguments: str, answer: str | None = None) -> Any:
    return CliRunner().invoke(app, list(arguments), input=answer)


@pytest.fixture
def kept(fresh_cache: Path) -> list[str]:
    """Three entries of 1, 2 and 3 kB, the first of them not used for longest; their keys."""

    def build(folder: Path, kilobytes: int) -> dict[str, Any]:
        (folder / "kernel.cpp").write_text("// text\n" * (125 * kilobytes))
        mod = {"name": f"mod{kilobytes}", "source": ["def mod(): ..."], "expression": ["score"]}
        mod |= {"arrays": ["slopes: float32, 1 dimensions"], "numbers": []}
        return {"backend": "cpu", "kernel": "attention", "keys": "SMOOTHED", "score_mod": mod, "mask_mod": None}

    store, keys = Store(), []
    for kilobytes in (1, 2, 3):
        key = key_of("test of the commands", str(kilobytes))
        entry = store.get_or_build(key, lambda folder, size=kilobytes: build(folder, size))
        os.utime(entry.folder / "manifest.json", (1e9 + kilobytes, 1e9 + kilobytes))
        keys.append(key)
    return keys


def damage(key: str, file: str = "kernel.cpp") -> None:
    (Store().folder / "kernels" / key[:2] / key / file).write_text("something else")


# ---- ls, show, path -------------------------------------------------------------------------------------------------


def test_ls(kept: list[str], fresh_cache: Path) -> None:
    result = run("cache", "ls")
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if "mod" in line and "kB" in line]
    assert [line.split()[0] for line in lines] == [key[:12] for key in reversed(kept)], "the last used first"
    assert "attention, keys smoothed" in lines[0] and "3.0 kB" in lines[0] and lines[0].split()[-1] == "whole"
    assert f"{fresh_cache}: 3 kernels, " in result.stdout


def test_ls_json(kept: list[str], fresh_cache: Path) -> None:
    damage(kept[1])
    damage(kept[2], "manifest.json")
    found = json.loads(run("cache", "ls", "--json").stdout)
    assert found["folder"] == str(fresh_cache) and found["bytes"] == Store().size()
    entries = {entry["key"]: entry for entry in found["entries"]}
    assert entries[kept[0]]["mods"] == ["mod1"] and entries[kept[0]]["size"] == 1000 and not entries[kept[0]]["damage"]
    assert entries[kept[1]]["damage"] == "kernel.cpp has 14 bytes, not 2000"
    assert "manifest.json" in entries[kept[2]]["damage"] and entries[kept[2]]["mods"] == []
    assert entries[kept[2]]["size"] == 3000 + len("something else"), "on disk, as in the bytes of all"


@pytest.mark.parametrize(
    ("columns", "heading"),
    [
        (160, ["key", "backend", "kernel", "mods", "size", "used", "state"]),
        (80, ["key", "kernel", "mods", "size", "used", "state"]),
        (40, ["key", "mods", "state"]),
    ],
)
def test_ls_on_a_terminal(kept: list[str], columns: int, heading: list[str]) -> None:
    damage(kept[1])
    console = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    print_table(console, cache_table(grouped(rows()), columns))
    assert isinstance(console.file, io.StringIO)
    lines = [line for line in console.file.getvalue().splitlines() if line.strip()]
    assert lines[0].split() == heading and len(lines) == 2 + 3, "a line for each kernel"
    assert max(map(len, lines)) <= columns and "…" not in "".join(lines)
    state = {line.split()[0]: line.split()[-1] for line in lines[2:]}
    assert state == {kept[0][:12]: "whole", kept[1][:12]: "damaged", kept[2][:12]: "whole"}
    assert all("2001-09-09 whole" in line for line in lines[2:] if columns > 40 and "whole" in line)


def test_an_empty_cache(fresh_cache: Path) -> None:
    assert run("cache", "ls").stdout == f"{fresh_cache}: 0 kernels, 0 B of 1.0 GB\n"
    assert run("cache", "verify").exit_code == 0
    assert run("cache", "path").stdout == f"{fresh_cache}\n"
    assert rows() == []
    assert not fresh_cache.exists(), "looking makes no folder"


def test_show(kept: list[str]) -> None:
    result = run("cache", "show", kept[0][:9])
    assert result.exit_code == 0
    for part in (
        kept[0],
        "score_mod mod1",
        "def mod(): ...",
        "captures slopes: float32",
        "kernel.cpp  1.0 kB",
        "whole",
    ):
        assert part in result.stdout
    assert run("cache", "show", kept[0][:9].upper(), "--whole").stdout.startswith("// text\n// text\n")
    found = json.loads(run("cache", "show", kept[0], "--json").stdout)
    assert found["manifest"]["key"] == kept[0] and found["damage"] == "" and "text" not in found
    assert json.loads(run("cache", "show", kept[0], "--json", "--whole").stdout) == {**found, "text": "// text\n" * 125}


def test_show_of_what_is_not_there(kept: list[str]) -> None:
    result = run("cache", "show", "xyz")
    assert result.exit_code == 2
    assert result.stderr == "flextrace cache show: no key begins with 'xyz'; `flextrace cache ls` lists them\n"
    result = run("cache", "show", "")
    assert result.exit_code == 2 and "3 keys begin with ''" in result.stderr and "add digits" in result.stderr
    damage(kept[0])
    result = run("cache", "show", kept[0], "--whole")
    assert result.exit_code == 2 and "has no kernel text to show: kernel.cpp has 14 bytes" in result.stderr
    assert "damaged: kernel.cpp has 14 bytes" in run("cache", "show", kept[0]).stdout
    damage(kept[1], "manifest.json")
    assert "damaged: manifest.json" in run("cache", "show", kept[1]).stdout


# ---- verify, prune, clear -------------------------------------------------------------------------------------------


def test_verify_in_a_real_process_finds_the_damage(kept: list[str], fresh_cache: Path, tmp_path: Path) -> None:
    damage(kept[2])
    done = flextrace("cache", "verify", folder=tmp_path, cache=fresh_cache)
    assert done.returncode == 1 and done.stderr == ""
    assert f"damaged {kept[2][:12]}: kernel.cpp has 14 bytes, not 3000\n2 of 3 kernels are whole\n" in done.stdout
    assert "`flextrace cache prune --damaged` removes what is damaged" in done.stdout
    done = flextrace("cache", "prune", "--damaged", folder=tmp_path, cache=fresh_cache)
    assert done.returncode == 0 and done.stdout.startswith("removed 1 kernel, "), done.stderr
    done = flextrace("cache", "verify", "--json", folder=tmp_path, cache=fresh_cache)
    assert done.returncode == 0 and json.loads(done.stdout) == {"ok": True, "entries": 2, "damaged": {}}


def test_verify_json(kept: list[str]) -> None:
    damage(kept[0])
    result = run("cache", "verify", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["damaged"] == {kept[0]: "kernel.cpp has 14 bytes, not 1000"}


def test_prune_removes_what_was_not_used_for_longest(kept: list[str]) -> None:
    total = Store().size()
    result = run("cache", "prune", "--max-size", str(total - 1))
    assert result.exit_code == 0 and result.stdout.startswith("removed 1 kernel, ")
    assert {entry.key for entry in Store().entries()} == set(kept[1:])
    assert run("cache", "prune", "--max-size", "1GB").stdout.startswith("removed 0 kernels, 0 B; ")
    assert run("cache", "prune", "--max-size", "0").stdout.endswith("0 B left\n")
    assert Store().entries() == []


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("500MB", 500_000_000), ("500 mb", 500_000_000), ("1.5GiB", 1_610_612_736), ("2k", 2000), ("7", 7)),
        *(("1" + "0" * 400, 10**400), ("1.5TB", 1_500_000_000_000)),
        *(("0", 0), ("12B", 12), (".5 kB", 500), ("1KiB", 1024), ("3T", 3 * 10**12)),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "MB", "five", "-1MB", "1.2.3GB", "1i", "1e9", "5 apples"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(CommandError, match=r"takes a size such as 500MB, 1\.5GiB or 0; got"):
        bytes_of(text)
    result = run("cache", "prune", f"--max-size={text}")
    assert result.exit_code == 2 and result.stderr.startswith("flextrace cache prune: --max-size takes a size")


def test_prune_of_nothing_in_particular_keeps_the_limit(kept: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("cache", "prune").stdout.startswith("removed 0 kernels, 0 B; ")
    monkeypatch.setattr(Store.__init__, "__kwdefaults__", {"lock_timeout": 600.0, "limit": Store().size() - 1})
    assert run("cache", "prune").stdout.startswith("removed 1 kernel, ")
    assert {entry.key for entry in Store().entries()} == {*kept[1:]}


def test_ls_groups_kernels_of_the_same_mods_and_pages(fresh_cache: Path) -> None:
    def build(folder: Path, number: int) -> dict[str, Any]:
        (folder / "kernel.cpp").write_text("//" * 500)
        mod = {"name": f"mod{number // 2}", "expression": ["score"]}  # two kernels of each
        return {"backend": "cpu", "kernel": "attention", "score_mod": mod, "mask_mod": None}

    for number in range(64):
        Store().get_or_build(key_of("page", str(number)), lambda folder, number=number: build(folder, number))
    first, second = run("cache", "ls").stdout, run("cache", "ls", "--page", "2").stdout
    assert first.count("2 kernels") == 30 and "page 1 of 2; --page 2 has the next" in first
    assert second.count("2 kernels") == 2 and "page 2 of 2\n" in second and "64 kernels, " in second
    assert {*re.findall(r"mod\d+", first + second)} == {f"mod{number}" for number in range(32)}
    assert "2.0 kB" in second, "the size of both"
    each = run("cache", "ls", "--each", "--page", "3").stdout
    assert "2 kernels" not in each and len(re.findall(r"mod\d+", each)) == 4 and "page 3 of 3\n" in each
    assert run("cache", "ls", "--page", "3").stderr == "flextrace cache ls: --page 3: there are 2\n"


def test_clear_asks(kept: list[str], fresh_cache: Path) -> None:
    result = run("cache", "clear", answer="n\n")
    assert result.exit_code == 0 and "nothing was removed" in result.stdout and len(Store().entries()) == 3
    assert f"Remove 3 kernels, {human_size(Store().size())}, from {fresh_cache}?" in result.stdout
    result = run("cache", "clear")
    assert result.exit_code == 2 and "there is nobody to ask; add --yes" in result.stderr
    assert len(Store().entries()) == 3
    assert "removed 3 kernels, " in run("cache", "clear", answer="y\n").stdout
    assert Store().entries() == []
    assert run("cache", "clear", "--yes").stdout == "removed 0 kernels, 0 B; 0 B left\n"


@pytest.mark.parametrize(
    "arguments", [["ls"], ["verify"], ["show", "a"], ["prune", "--max-size", "0"], ["clear", "--yes"]]
)
def test_a_cache_that_others_can_write_to(kept: list[str], fresh_cache: Path, arguments: list[str]) -> None:
    fresh_cache.chmod(0o777)
    result = run("cache", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(f"flextrace cache {arguments[0]}: ") and "chmod go-w" in result.stderr


@pytest.mark.parametrize("arguments", [["ls"], ["verify"], ["prune", "--max-size", "0"], ["clear", "--yes"]])
def test_a_cache_that_cannot_be_read(kept: list[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    def refuse(self: Store) -> Any:
        raise PermissionError(13, "Permission denied", "kernels")

    monkeypatch.setattr(Store, "_folders", refuse)
    result = run("cache", *arguments)
    assert result.exit_code == 2 and "Permission denied" in result.stderr
    assert "set FLEXTRACE_CACHE_DIR to a folder of your own" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["ls"], ["verify"], ["show", "a"], ["prune", "--max-size", "0"], ["clear", "--yes"]]
)
def test_a_cache_that_is_a_file(fresh_cache: Path, arguments: list[str]) -> None:
    fresh_cache.write_text("")
    result = run("cache", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert f"{fresh_cache} is not a folder; set FLEXTRACE_CACHE_DIR to a folder of your own" in result.stderr


# ---- warm -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "notes.py").write_text(NOTES)
    (tmp_path / "call.py").write_text(CALL)
    return tmp_path


def call(folder: Path, options: dict[str, Any], with_blocks: bool) -> Any:
    """What the later process compiles: how many kernels it made."""
    environment = {**os.environ, "FLEXTRACE_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "call.py", json.dumps([options, with_blocks])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def keys_in(folder: Path) -> set[str]:
    return {entry.key for entry in Store(folder / "cache").entries()}


@pytest.mark.parametrize(
    ("flags", "options", "kernel"),
    [
        ([], {}, "attention"),
        (["--qk-quant", "int8"], {"QK_QUANT": "int8"}, "attention, keys quantised"),
        (["--smooth-k"], {"SMOOTH_K": True}, "attention, keys smoothed"),
    ],
)
def test_a_later_process_compiles_nothing(folder: Path, flags: list[str], options: dict[str, Any], kernel: str) -> None:
    command = ["warm", "notes:alibi+banded", "--shape", "2,2,40,32", "--dtype", "float16", "--json", *flags]
    done = flextrace(*command, folder=folder, cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (warmed,) = found["kernels"]
    assert found["compiled"] == 1 and warmed["found"] == "compiled" and warmed["kernel"] == kernel
    assert warmed["mods"] == "alibi + banded" and warmed["backend"] == "cpu"
    before = keys_in(folder)
    assert before == {warmed["key"]}, "exactly what is needed"
    assert call(folder, {**options, "BACKEND": "cpu"}, with_blocks=bool(flags)) == 0
    assert keys_in(folder) == before


@pytest.mark.parametrize("flags", [[], ["--qk-quant", "int8", "--smooth-q", "--block-mask"]])
def test_a_later_process_compiles_nothing_for_the_simulator(folder: Path, flags: list[str]) -> None:
    command = ["warm", "notes:alibi+banded", "--shape", "2,2,40,32", "--dtype", "float16", "--backend", "simulator"]
    done = flextrace(*command, "--json", *flags, folder=folder, cache=folder / "cache")
    if "found no g++" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    warmed = json.loads(done.stdout)["kernels"]
    before = keys_in(folder)
    assert {each["key"] for each in warmed} <= before and all(each["found"] == "compiled" for each in warmed)
    assert any(each["kernel"] == "attention, float16, head_dim 32" for each in warmed)
    options: dict[str, Any] = {"QK_QUANT": "int8", "SMOOTH_Q": True} if flags else {}
    assert call(folder, {**options, "BACKEND": "simulator"}, with_blocks=bool(flags)) == 0
    new = [Store(folder / "cache").get(key) for key in keys_in(folder) - before]
    assert not new, [None if entry is None else entry.manifest["kernel"] for entry in new]


def test_warm_says_what_was_compiled_and_what_was_there(folder: Path, fresh_cache: Path) -> None:
    notes = f"{folder / 'notes.py'}"
    result = run("warm", f"{notes}:plain_score", "--backend", "cpu")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(
        r"compiled   [0-9a-f]{12}  cpu  plain_score: attention, \d+\.\d s\n1 compiled, 0 .*\n", result.stdout
    )
    several = [f"{notes}:plain_score", f"{notes}:plain_mask", "--dtype", "float32", "--dtype", "bfloat16"]
    result = run("warm", *several, "--shape", "1,2,64,32", "--shape", "1,2,128,64", "--backend", "cpu", "--json")
    found = json.loads(result.stdout)
    assert [(k["mods"], k["found"]) for k in found["kernels"]] == [
        ("plain_score", "on disk"),
        ("plain_mask", "compiled"),
    ]
    assert found["compiled"] == 1, "all shapes and dtypes share a kernel of the cpu backend"


DIFFERENTIATE = """
import mlx.core as mx, notes, flextrace as flex
from flextrace.kernels import backend_for
q = mx.random.normal((1, 2, 40, 32))
mx.eval(mx.grad(lambda q: flex.flex_attention(q, q, q, notes.alibi, kernel_options={"BACKEND": "cpu"}).sum())(q))
print(backend_for("cpu").built)
"""


def test_warm_builds_the_kernels_of_gradients_for_training(folder: Path, fresh_cache: Path) -> None:
    target = f"{folder / 'notes.py'}:alibi"
    made = json.loads(run("warm", target, "--gradients", "--backend", "cpu", "--json").stdout)["kernels"]
    assert [each["kernel"] for each in made][:2] == ["attention", "attention, gradients of q, k, v"]
    done = subprocess.run([sys.executable, "-c", DIFFERENTIATE], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
    result = run("warm", target, "--gradients", "--backend", "simulator")
    assert result.exit_code == 2
    assert "the simulator backend keeps no kernels of gradients on disk" in result.stderr


@pytest.mark.parametrize("backend", ["cpu", "simulator", "metal"])
def test_warm_that_can_keep_nothing(
    folder: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(fallback, "_first_warning", threading.Lock())
    monkeypatch.setattr("flextrace.kernels.metal.MetalBackend.unavailable", lambda self: None)
    fresh_cache.mkdir(0o700)
    (fresh_cache / "locks").write_text("a file where a folder is needed")
    result = run("warm", f"{folder / 'notes.py'}:plain_score", "--backend", backend, "--shape", "1,1,8,8")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(f"flextrace warm: the kernel cache {fresh_cache} cannot be written to (")
    assert "set FLEXTRACE_CACHE_DIR to a folder that is" in result.stderr


def test_the_warning_names_the_user_s_line(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_first_warning", threading.Lock())
    fresh_cache.mkdir(0o700)
    (fresh_cache / "locks").write_text("a file where a folder is needed")
    q = mx.zeros((1, 1, 8, 8))
    with pytest.warns(CacheWarning, match="cannot be written to") as caught:
        flex_attention(q, q, q, kernel_options={"BACKEND": "cpu"})
    assert caught[0].filename == __file__


def test_warm_into_a_file(folder: Path, fresh_cache: Path) -> None:
    fresh_cache.write_text("")
    result = run("warm", f"{folder / 'notes.py'}:plain_score", "--backend", "cpu")
    assert result.exit_code == 2 and result.stdout == ""
    assert f"{fresh_cache} is not a folder; set FLEXTRACE_CACHE_DIR to a folder of your own" in result.stderr


def test_a_damaged_kernel_is_compiled_again(folder: Path, fresh_cache: Path) -> None:
    target = f"{folder / 'notes.py'}:plain_score"
    (warmed,) = json.loads(run("warm", target, "--backend", "cpu", "--json").stdout)["kernels"]
    damage(warmed["key"])
    (again,) = json.loads(run("warm", target, "--backend", "cpu", "--json").stdout)["kernels"]
    assert (again["key"], again["found"]) == (warmed["key"], "compiled")
    assert Store().verify() == {}


def test_warm_on_metal_keeps_the_text(folder: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flextrace.kernels.metal import MetalBackend

    target = f"{folder / 'notes.py'}:alibi"
    result = run("warm", target, "--backend", "metal")
    if result.exit_code:
        assert result.exit_code == 2 and "run on a Mac with Apple silicon" in result.stderr
    monkeypatch.setattr(MetalBackend, "unavailable", lambda self: None)
    result = run("warm", target, "--backend", "metal", "--json")
    (warmed,) = json.loads(result.stdout)["kernels"]
    assert (warmed["backend"], warmed["kernel"], warmed["found"]) == ("metal", "text", "compiled")
    (entry,) = Store().entries()
    assert (entry.folder / "kernel.metal").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--smooth-q"], 'kernel option SMOOTH_Q smooths what is quantised; add "QK_QUANT": "int8"'),
        (["--qk-quant", "int4"], "int4"),
        (["--dtype", "float64"], "float64"),
        (["--backend", "ops"], "ops"),
    ],
)
def test_options_that_are_refused(folder: Path, flags: list[str], message: str) -> None:
    result = run("warm", f"{folder / 'notes.py'}:alibi", *flags)
    assert result.exit_code == 2 and message in result.stderr
