"""Who else could change the way to the cache, and that what is loaded is what was verified."""

import grp
import os
import pwd
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flextrace.cache.loading as loading
from flextrace.cache import CacheError, LoadError, Store, key_of, trust

KEY = key_of("the kernel")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="another user's id can be taken by root only")
SOMEBODY = 54321


def build(folder: Path) -> dict[str, Any]:
    (folder / "kernel.so").write_bytes(b"mine")
    return {}


def read(path: Path) -> bytes:
    return path.read_bytes()


def load(cache: Store, build: Callable[[Path], dict[str, Any]] = build) -> bytes:
    return cache.load_or_build(KEY, build, "kernel.so", read)[1]


# ---- the way -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o773, 0o757])
@pytest.mark.parametrize("depth", ["a", "a/b", "a/b/c"])
def test_a_folder_above_that_others_can_write_to_is_refused(tmp_path: Path, mode: int, depth: str) -> None:
    cache = Store(tmp_path / "a" / "b" / "c" / "cache")
    cache.get_or_build(KEY, build)
    bad = tmp_path / depth
    bad.chmod(mode)
    uses: list[Callable[[], object]] = [
        *(
            lambda: cache.get(KEY),
            lambda: cache.get_or_build(KEY, build),
            lambda: cache.get_or_build(key_of("x"), build),
        ),
        *(cache.entries, cache.verify, cache.clear, lambda: cache.remove(KEY), lambda: load(cache)),
    ]
    for use in uses:
        with pytest.raises(CacheError) as caught:
            use()
        message = str(caught.value)
        assert f"{bad}, on the way to the kernel cache {cache.folder}, can be written to by others" in message
        assert f"(mode {mode:04o}, no sticky bit)" in message and f"Remedy: chmod go-w '{bad}', or set FLEX" in message
    bad.chmod(mode | stat.S_ISVTX)  # as /tmp: others can write to it, and not rename what is mine
    assert load(cache) == b"mine"


@pytest.mark.parametrize(
    "gid, members, good",
    [
        (1234, [], True),  # a group of one, made with the user
        (1234, ["me"], True),
        (1234, ["me", "you"], False),
        (1235, [], False),  # a group of that name that is not the user's own
        (0, ["you"], True),  # root's
        (99, [], False),  # staff
    ],
)
def test_a_group_that_is_the_users_alone_may_write(
    monkeypatch: pytest.MonkeyPatch, gid: int, members: list[str], good: bool
) -> None:
    me = SimpleNamespace(pw_name="me", pw_gid=1234)
    names = {1234: "me", 1235: "me", 99: "staff"}
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: me)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name=names[gid], gr_mem=members))
    assert trust._is_own_group(gid) is good


def test_a_folder_above_that_a_group_can_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Store(tmp_path / "home" / "cache")
    assert load(cache) == b"mine"
    cache.folder.parent.chmod(0o775)
    monkeypatch.setattr(trust, "_is_own_group", lambda gid: True)
    assert load(cache) == b"mine"
    monkeypatch.setattr(trust, "_is_own_group", lambda gid: False)
    with pytest.raises(CacheError, match="home, on the way .* can be written to by others .mode 0775"):
        load(cache)


def test_folders_on_the_way_are_made_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = Store(tmp_path / "new" / "newer" / "cache")
        assert load(cache) == b"mine"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_links_are_followed_and_what_they_pass_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "deep" / "real").mkdir(parents=True)
    (tmp_path / "open").mkdir()
    (tmp_path / "relative").symlink_to("deep/../deep/real")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    (tmp_path / "open" / "link").symlink_to(tmp_path / "deep")
    (tmp_path / "through").symlink_to("open/../open/link/real")
    for name in ("relative", "absolute", "through"):
        assert load(Store(tmp_path / name / "cache")) == b"mine"
    assert (tmp_path / "deep" / "real" / "cache" / "kernels").is_dir()
    (tmp_path / "open").chmod(0o777)
    assert load(Store(tmp_path / "absolute" / "cache")) == b"mine"
    with pytest.raises(CacheError, match=f"{tmp_path}/open, on the way"):
        load(Store(tmp_path / "through" / "cache"))
    (tmp_path / "deep").chmod(0o777)
    with pytest.raises(CacheError, match=f"{tmp_path}/deep, on the way"):
        load(Store(tmp_path / "absolute" / "cache"))


@pytest.mark.filterwarnings("ignore::flextrace.CacheWarning")
def test_a_circle_of_links_is_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    entry = Store(tmp_path / "a" / "cache").get_or_build(KEY, build)
    assert tmp_path not in entry.folder.parents


def test_a_folder_above_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Store(tmp_path / "home" / "cache")
    load(cache)
    real = os.lstat

    def lstat(path: Any) -> Any:
        found = real(path)
        if str(path) == str(cache.folder.parent):
            return SimpleNamespace(st_mode=found.st_mode, st_uid=SOMEBODY, st_gid=found.st_gid)
        return found

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(CacheError, match=f"home, on the way .* belongs to uid {SOMEBODY}, neither to root nor to you"):
        load(cache)


@AS_ROOT
def test_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "shared" / "link").symlink_to(tmp_path)
    cache = Store(tmp_path / "shared" / "link" / "cache")
    assert load(cache) == b"mine"
    os.lchown(tmp_path / "shared" / "link", SOMEBODY, SOMEBODY)
    with pytest.raises(CacheError, match=f"link, on the way .* belongs to uid {SOMEBODY}"):
        load(cache)


EXCHANGES = 400


def exchange_as_somebody(parent: Path) -> int:
    """Another user who renames `cache` and a folder of his own in turn, as often as the system lets him."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setgid(SOMEBODY)
        os.setuid(SOMEBODY)
        os.chdir(parent)
        while True:
            for old, new in (("cache", "aside"), ("foreign", "cache"), ("cache", "foreign"), ("aside", "cache")):
                try:
                    os.rename(old, new)
                except OSError:
                    continue
    finally:
        os._exit(0)


@AS_ROOT
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_another_user_who_exchanges_the_folder_is_never_loaded(tmp_path: Path, mode: int) -> None:
    for folder in (tmp_path.parent.parent, tmp_path.parent, tmp_path):
        folder.chmod(0o711)  # the other user may pass
    parent = tmp_path / "parent"
    cache = Store(parent / "cache")
    assert load(cache) == b"mine"
    foreign = Store(parent / "foreign")
    foreign.get_or_build(KEY, lambda folder: {"size": (folder / "kernel.so").write_bytes(b"other")})
    for path in (foreign.folder, *foreign.folder.rglob("*")):
        os.chown(path, SOMEBODY, SOMEBODY)
    parent.chmod(mode)
    pid = exchange_as_somebody(parent)
    refused = 0
    try:
        for _ in range(EXCHANGES):
            try:
                assert load(cache) == b"mine"
            except CacheError:
                refused += 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert refused == (EXCHANGES if mode == 0o777 else 0)


# ---- what is loaded ----------------------------------------------------------------------------------------------


def test_what_is_loaded_is_what_was_verified(cache: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is exchanged, or the cache cleared, between the look and the load."""
    load(cache)
    real = Store.get_or_build
    between: list[Callable[[], object]] = [
        lambda: (cache.folder / "kernels" / KEY[:2] / KEY / "kernel.so").write_bytes(b"other")
    ]

    def then(store: Store, *rest: Any) -> Any:
        entry = real(store, *rest)
        between.pop()()
        return entry

    monkeypatch.setattr(Store, "get_or_build", then)
    assert load(cache) == b"mine" and not between
    between.append(lambda: None)
    assert load(cache) == b"mine"  # built again: the file had been changed
    between.append(cache.clear)
    assert load(cache, lambda folder: pytest.fail("it is there")) == b"mine" and cache.entries() == []


def test_all_files_of_an_entry_come_from_one_folder(cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder put in the entry's place after its manifest was read is not read."""
    entry = cache.get_or_build(KEY, build)
    aside = cache.folder / "aside"
    real = os.open

    def exchange(path: Any, *rest: Any, **named: Any) -> int:
        if path == "kernel.so" and not aside.exists():
            entry.folder.rename(aside)
            entry.folder.mkdir()
            (entry.folder / "kernel.so").write_bytes(b"other")
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", exchange)
    found = cache.get(KEY)
    assert aside.exists() and found is not None and found.contents["kernel.so"] == b"mine"


def test_the_loaded_copy_is_private_and_goes(cache: Store) -> None:
    def look(path: Path) -> Path:
        assert cache.folder not in path.parents and path.name.endswith("kernel.so") and path.read_bytes() == b"mine"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        return path

    for _ in range(2):  # made, then from disk
        assert not cache.load_or_build(KEY, build, "kernel.so", look)[1].exists()


@pytest.mark.parametrize("why", ["is missing", "can be exchanged", "is mounted noexec"])
def test_where_no_temporary_folder_serves_the_cache_does(
    cache: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    load(cache)
    temporary = tmp_path / "tmp"
    real = loading.tempfile.mkstemp

    def mkstemp(prefix: str, suffix: str, dir: Any) -> tuple[int, str]:
        return real(prefix=prefix, suffix=suffix, dir=dir if str(cache.folder) in str(dir) else temporary)

    monkeypatch.setattr(loading.tempfile, "mkstemp", mkstemp)
    if why != "is missing":
        temporary.mkdir()
        temporary.chmod(0o777 if why == "can be exchanged" else 0o700)

    def look(path: Path) -> Path:
        if temporary in path.parents:
            assert why == "is mounted noexec"
            raise LoadError("failed to map segment")
        return path

    assert cache.folder in cache.load_or_build(KEY, build, "kernel.so", look)[1].parents
    assert list((cache.folder / "building").iterdir()) == []


def test_what_does_not_load_is_no_entry(cache: Store) -> None:
    def refuse(path: Path) -> None:
        raise LoadError("file too short")

    for _ in range(2):
        with pytest.raises(LoadError, match="file too short"):
            cache.load_or_build(KEY, build, "kernel.so", refuse)
        assert cache.entries() == [] and list((cache.folder / "building").iterdir()) == []


def test_an_entry_that_does_not_load_any_more_is_built_once_again(cache: Store) -> None:
    cache.get_or_build(KEY, build)
    runs = []

    def again(folder: Path) -> dict[str, Any]:
        runs.append(1)
        (folder / "kernel.so").write_bytes(b"new")
        return {}

    def only_new(path: Path) -> bytes:
        if path.read_bytes() != b"new":
            raise LoadError("made for another machine")
        return b"new"

    for _ in range(2):
        assert cache.load_or_build(KEY, again, "kernel.so", only_new)[1] == b"new"
    assert len(runs) == 1
    runs.clear()

    def never(path: Path) -> None:
        raise LoadError("no such symbol")

    with pytest.raises(LoadError, match="no such symbol"):
        cache.load_or_build(KEY, again, "kernel.so", never)
    assert len(runs) == 1 and cache.entries() == []


def test_copies_of_processes_that_died_are_swept(cache: Store) -> None:
    load(cache)
    old, new = (cache.folder / "building" / f"{loading.PREFIX}{name}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"copy")
    os.utime(old, (1e9, 1e9))
    cache.get_or_build(key_of("another"), build)
    assert not old.exists() and new.exists()
