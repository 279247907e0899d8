"""One process: what an entry is, what counts as damage, who is refused, what is removed."""

import json
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flextrace.cache import CacheError, Entry, Store, key_of

KEY = key_of("the kernel")
REQUIRED = ("kernel.cpp", "kernel.so")


class Builder:
    """A builder that counts its runs."""

    def __init__(self, size: int = 1000) -> None:
        self.size, self.runs = size, 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.runs += 1
        (folder / "kernel.cpp").write_text("int f() { return 1; }")
        (folder / "kernel.so").write_bytes(bytes(range(250)) * (self.size // 250))
        return {"mod": "alibi", "tile": [64, 32]}


def whole(entry: Entry) -> bool:
    return (entry.folder / "kernel.so").read_bytes() == bytes(range(250)) * 4


def leftovers(cache: Store) -> list[str]:
    return sorted(path.name for path in (cache.folder / "building").iterdir())


def test_key_separates_its_parts() -> None:
    assert key_of("ab", "c") != key_of("a", "bc") != key_of("abc")
    assert key_of("a", b"\0") == key_of(b"a", "\0")
    assert re.fullmatch("[0-9a-f]{64}", key_of())


def test_an_entry_is_built_once_and_readable_by_eye(cache: Store) -> None:
    build = Builder()
    assert cache.get(KEY) is None
    first = cache.get_or_build(KEY, build, REQUIRED)
    again = Store(cache.folder).get_or_build(KEY, build, REQUIRED)
    assert build.runs == 1 and whole(again)
    assert first.folder == again.folder == cache.folder / "kernels" / KEY[:2] / KEY
    assert first.manifest == again.manifest == json.loads((first.folder / "manifest.json").read_text())
    assert first.manifest["mod"] == "alibi" and first.manifest["tile"] == [64, 32]
    assert first.manifest["files"]["kernel.so"]["bytes"] == 1000 and first.size == 1021
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "kernel.cpp",
        "kernel.so",
        "manifest.json",
    ]
    assert leftovers(cache) == []


def test_everything_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = Store(tmp_path / "cache")
        cache.get_or_build(KEY, Builder())
    finally:
        os.umask(before)
    for path in [cache.folder, *cache.folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_an_executable_and_a_subfolder_are_kept(cache: Store) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "debug").mkdir()
        (folder / "debug" / "symbols").write_text("s")
        (folder / "tool").write_text("#!/bin/sh\n")
        (folder / "tool").chmod(0o755)
        return {}

    cache.get_or_build(KEY, build)
    entry = cache.get(KEY, ["debug/symbols", "tool"])
    assert entry is not None and stat.S_IMODE((entry.folder / "tool").stat().st_mode) == 0o700
    (entry.folder / "debug" / "symbols").write_text("t")
    assert cache.get(KEY) is None


def flip_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit_manifest(folder: Path, **fields: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def replace_by_link(folder: Path) -> None:
    (folder / "kernel.so").rename(folder / "elsewhere.so")
    (folder / "kernel.so").symlink_to("elsewhere.so")


def replace_by_folder(folder: Path) -> None:
    (folder / "kernel.so").unlink()
    (folder / "kernel.so").mkdir()


def replace_by_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("junk")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: os.truncate(f / "kernel.so", 600), "kernel.so has 600 bytes, not 1000"),
    "bit flipped": (lambda f: flip_bit(f / "kernel.so", 500), "kernel.so differs from its checksum"),
    "file missing": (lambda f: (f / "kernel.so").unlink(), "kernel.so cannot be read: No such file"),
    "file is a folder": (
        replace_by_folder,
        "kernel.so cannot be read: Is a directory",
    ),
    "file is a link": (replace_by_link, "kernel.so cannot be read: "),
    "file others can write": (
        lambda f: (f / "kernel.so").chmod(0o666),
        "kernel.so can be written to by others",
    ),
    "folder others can write": (lambda f: f.chmod(0o770), "the entry's folder can be written to by others"),
    "no folder": (replace_by_file, "the entry is no folder"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
    "empty manifest": (lambda f: os.truncate(f / "manifest.json", 0), "manifest.json cannot be parsed"),
    "half a manifest": (lambda f: os.truncate(f / "manifest.json", 90), "manifest.json cannot be parsed"),
    "manifest of bytes": (lambda f: (f / "manifest.json").write_bytes(b"\xff\0"), "cannot be parsed"),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[]"), "cannot be parsed"),
    "deep manifest": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "cannot be parsed"),
    "manifest changed": (lambda f: edit_manifest(f, mod="other"), "manifest.json differs from its checksum"),
    "other format": (lambda f: edit_manifest(f, format=99), "it has format 99, not 1"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_entry_is_reported_and_rebuilt(cache: Store, name: str) -> None:
    build = Builder()
    folder = cache.get_or_build(KEY, build, REQUIRED).folder
    damage, message = DAMAGE[name]
    damage(folder)
    assert message in cache.verify()[KEY]
    assert cache.get(KEY, REQUIRED) is None
    assert whole(cache.get_or_build(KEY, build, REQUIRED)) and build.runs == 2
    assert cache.verify() == {} and leftovers(cache) == []
    assert whole(cache.get_or_build(KEY, build, REQUIRED)) and build.runs == 2


def test_every_flipped_byte_of_a_manifest_is_noticed_or_harmless(cache: Store) -> None:
    entry = cache.get_or_build(KEY, Builder())
    path = entry.folder / "manifest.json"
    content = path.read_bytes()
    for at in range(len(content)):
        flip_bit(path, at)
        found = cache.get(KEY)
        assert found is None or found.manifest == entry.manifest
        path.write_bytes(content)


def test_an_entry_of_another_key_is_no_entry(cache: Store) -> None:
    build = Builder()
    other = cache.get_or_build(key_of("other"), build)
    folder = cache.folder / "kernels" / KEY[:2] / KEY
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    other.folder.rename(folder)
    assert cache.get(KEY) is None


def test_junk_beside_the_files_is_ignored(cache: Store) -> None:
    build = Builder()
    folder = cache.get_or_build(KEY, build, REQUIRED).folder
    (folder / ".DS_Store").write_text("junk")
    (cache.folder / "kernels" / "junk").write_text("junk")
    (cache.folder / "building" / "junk").write_text("junk")
    assert whole(cache.get_or_build(KEY, build, REQUIRED)) and build.runs == 1
    assert cache.verify() == {} and len(cache.entries()) == 1
    cache.get_or_build(key_of("other"), build)


def test_an_entry_without_a_required_file_is_rebuilt(cache: Store) -> None:
    cache.get_or_build(KEY, lambda folder: {})
    build = Builder()
    assert cache.get(KEY) is not None and cache.get(KEY, REQUIRED) is None
    assert whole(cache.get_or_build(KEY, build, REQUIRED)) and build.runs == 1


def test_an_open_damaged_file_is_never_written_over(cache: Store) -> None:
    folder = cache.get_or_build(KEY, Builder()).folder
    flip_bit(folder / "kernel.so", 0)
    with open(folder / "kernel.so", "rb") as loaded:
        assert whole(cache.get_or_build(KEY, Builder()))
        assert loaded.read(2) == b"\1\1"


def test_a_failing_builder_is_heard_and_leaves_nothing(cache: Store) -> None:
    class CompilerError(Exception):
        pass

    raised = CompilerError("line 3: no such name")

    def fail(folder: Path) -> dict[str, Any]:
        (folder / "kernel.cpp").write_text("half")
        raise raised

    for _ in range(2):
        with pytest.raises(CompilerError) as caught:
            cache.get_or_build(KEY, fail)
        assert caught.value is raised and caught.value.__cause__ is None and caught.value.__context__ is None
        assert leftovers(cache) == [] and cache.entries() == []
    assert whole(cache.get_or_build(KEY, Builder()))


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no g++"), PermissionError(13, "g++"), KeyboardInterrupt()])
def test_a_builders_own_oserror_and_ctrl_c_pass_through(cache: Store, error: BaseException) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        raise error

    with pytest.raises(type(error)) as caught:
        cache.get_or_build(KEY, fail)
    assert caught.value is error and leftovers(cache) == []


def write(name: str, **fields: Any) -> Callable[[Path], dict[str, Any]]:
    def build(folder: Path) -> dict[str, Any]:
        (folder / name).write_text("x")
        return fields

    return build


def write_link(folder: Path) -> dict[str, Any]:
    (folder / "kernel.so").symlink_to("/bin/sh")
    return {}


@pytest.mark.parametrize(
    "build, message",
    [
        (write("a"), r"did not write \['kernel.so'\], only \['a'\]: write it, or do not require it"),
        (write("kernel.so", files=1), r"uses \['files'\], which the store writes itself: choose other names"),
        (write_link, "left 'kernel.so', which is no regular file: write a copy, not a link"),
    ],
)
def test_a_builder_that_leaves_no_entry_is_told(
    cache: Store, build: Callable[[Path], dict[str, Any]], message: str
) -> None:
    with pytest.raises(CacheError, match=message):
        cache.get_or_build(KEY, build, ["kernel.so"])
    assert leftovers(cache) == [] and cache.entries() == []


def test_a_builder_may_not_write_the_manifest_nor_what_json_lacks(cache: Store) -> None:
    with pytest.raises(CacheError, match=r"uses \['manifest.json'\]"):
        cache.get_or_build(KEY, write("manifest.json"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        cache.get_or_build(KEY, write("a", mod=object()))
    assert leftovers(cache) == [] and cache.entries() == []


@pytest.mark.parametrize("key", ["", "ab", "../" * 21 + "a", KEY.upper(), KEY + "\n"])
def test_a_key_that_is_none_is_refused(cache: Store, key: str) -> None:
    for use in (cache.get, cache.remove, lambda key: cache.get_or_build(key, Builder())):
        with pytest.raises(ValueError, match=r"64 hexadecimal digits, got .* make it with key_of"):
            use(key)


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o777])
@pytest.mark.parametrize("inner", ["", "kernels", "kernels/" + KEY[:2], "building", "locks"])
def test_a_folder_that_others_can_write_to_is_refused(cache: Store, mode: int, inner: str) -> None:
    build = Builder()
    cache.get_or_build(KEY, build)
    folder = cache.folder / inner
    folder.chmod(mode)
    key = key_of("new") if inner in ("building", "locks") else KEY
    with pytest.raises(CacheError) as caught:
        cache.get_or_build(key, build)
    message = str(caught.value)
    assert f"the kernel cache folder {folder} can be written to by others (mode {mode:04o})" in message
    assert f"chmod go-w '{folder}', or set FLEXTRACE_CACHE_DIR to a folder of your own" in message
    assert build.runs == 1
    folder.chmod(mode & ~0o022)
    cache.get_or_build(key, build)


def test_every_way_in_refuses(cache: Store) -> None:
    cache.get_or_build(KEY, Builder())
    cache.folder.chmod(0o777)
    for use in (cache.entries, cache.verify, cache.size, cache.clear, lambda: cache.remove(KEY)):
        with pytest.raises(CacheError, match="FLEXTRACE_CACHE_DIR"):
            use()


def test_a_folder_of_somebody_else_is_refused(cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builder()
    cache.get_or_build(KEY, build)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(CacheError) as caught:
        cache.get_or_build(KEY, build)
    assert f"{cache.folder} belongs to uid {me}, not to you (uid {me + 1})" in str(caught.value)
    assert "set FLEXTRACE_CACHE_DIR to a folder of your own" in str(caught.value)
    assert build.runs == 1


def test_a_link_to_a_good_folder_serves_and_to_a_bad_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "target").mkdir(mode=0o755)
    build = Builder()
    cache = Store(tmp_path / "link")
    assert whole(cache.get_or_build(KEY, build))
    assert (tmp_path / "target" / "kernels").is_dir()
    (tmp_path / "target").chmod(0o777)
    with pytest.raises(CacheError, match="can be written to by others"):
        cache.get_or_build(KEY, build)


def test_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Store().folder.name == "flextrace" and Store().folder.is_absolute()
    monkeypatch.setenv("FLEXTRACE_CACHE_DIR", str(tmp_path / "here"))
    assert Store().folder == tmp_path / "here"
    assert Store(tmp_path / "there").folder == tmp_path / "there"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLEXTRACE_CACHE_DIR", "near")
    assert Store().folder == tmp_path / "near"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLEXTRACE_CACHE_DIR", "~/home")
    assert Store().folder == tmp_path / "home"
    monkeypatch.setenv("FLEXTRACE_CACHE_DIR", "")
    assert Store().folder.name == "flextrace"
    assert list(tmp_path.iterdir()) == []


def fill(cache: Store) -> list[str]:
    keys = [key_of(str(number)) for number in range(4)]
    for age, key in enumerate(keys):
        manifest = cache.get_or_build(key, Builder(100_000)).folder / "manifest.json"
        os.utime(manifest, (1e9 - age, 1e9 - age))
    return keys


def test_prune_removes_the_least_recently_used(cache: Store) -> None:
    keys = fill(cache)
    assert [entry.key for entry in cache.entries()] == keys
    assert cache.get(keys[3]) is not None  # used now
    assert cache.prune(cache.size()) == 0
    assert cache.prune(250_000) == 2
    assert [entry.key for entry in cache.entries()] == [keys[3], keys[0]]
    assert cache.size() <= 250_000 and cache.verify() == {} and leftovers(cache) == []


@pytest.mark.parametrize(("age", "noted"), [(30, False), (90, True)])
def test_a_use_is_noted_at_most_once_a_minute(cache: Store, age: float, noted: bool) -> None:
    key = key_of("used often")
    manifest, before = cache.get_or_build(key, Builder()).folder / "manifest.json", time.time() - age
    os.utime(manifest, (before, before))
    assert cache.get(key) is not None
    assert (manifest.stat().st_mtime > before + 1) == noted


def test_a_build_beyond_the_limit_removes_what_was_not_used_for_longest(cache: Store) -> None:
    keys = fill(cache)
    small = Store(cache.folder, limit=cache.size() + 20_000)
    assert small.get(keys[3]) is not None  # used now
    built = small.get_or_build(key_of("one more"), Builder(100_000))
    assert {entry.key for entry in cache.entries()} == {built.key, keys[0], keys[3]}, "to nine tenths of the limit"
    assert small.get_or_build(key_of("another"), Builder(100_000)).folder.is_dir()
    assert len(cache.entries()) == 4 and cache.verify() == {} and leftovers(cache) == []


def test_what_was_built_stays_however_small_the_limit(cache: Store) -> None:
    tiny = Store(cache.folder, limit=0)
    for name in ("first", "second"):
        built = tiny.get_or_build(key_of(name), Builder(100_000))
        assert [entry.key for entry in cache.entries()] == [built.key]


def test_prune_takes_the_damaged_first(cache: Store) -> None:
    keys = fill(cache)
    (cache.folder / "kernels" / keys[0][:2] / keys[0] / "manifest.json").unlink()
    assert len(cache.entries()) == 3 and list(cache.verify()) == [keys[0]]
    assert cache.prune(350_000) == 1
    assert {entry.key for entry in cache.entries()} == set(keys[1:])


def test_remove_and_clear(cache: Store) -> None:
    assert cache.clear() == 0 and cache.remove(KEY) is False and cache.entries() == [] and cache.size() == 0
    assert not cache.folder.exists()
    keys = fill(cache)
    assert cache.remove(keys[0]) is True and cache.remove(keys[0]) is False
    assert len(cache.entries()) == 3
    assert cache.clear() == 3 and cache.entries() == [] and cache.size() == 0 and leftovers(cache) == []
    assert whole(cache.get_or_build(KEY, Builder()))
