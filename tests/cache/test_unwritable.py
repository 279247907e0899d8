"""A disk that is read-only or full: kernels are still built, with one warning."""

import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from flextrace.cache import CacheError, CacheWarning, Store, fallback, key_of

KEY, OTHER = key_of("the kernel"), key_of("another")


class Builder:
    def __init__(self) -> None:
        self.folders: list[Path] = []

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.folders.append(folder)
        (folder / "kernel.so").write_bytes(b"code")
        return {}


def fail_under(folder: Path, error: int, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have one system call fail for paths in `folder`, as a disk would."""
    owner = Path if step == "mkdir" else os  # Python 3.10 keeps its own os.mkdir in Path
    real = getattr(owner, step)

    def fake(path: Any, *rest: Any, **named: Any) -> Any:
        if not isinstance(path, int) and str(path).startswith(str(folder)):
            raise OSError(error, os.strerror(error), str(path))
        return real(path, *rest, **named)

    monkeypatch.setattr(owner, step, fake)


def build_twice_and_count_warnings(cache: Store, build: Builder) -> list[str]:
    """Use two keys twice each, from two stores: one build per key, in one folder outside the cache."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for store in (cache, cache, Store(cache.folder)):
            for key in (KEY, OTHER):
                entry = store.get_or_build(key, build, ["kernel.so"])
                assert (entry.folder / "kernel.so").read_bytes() == b"code"
                assert cache.folder not in entry.folder.parents
    outside = [folder for folder in build.folders if cache.folder not in folder.parents]
    assert len(outside) == 2 and cache.get(KEY) is not None
    assert all(each.category is CacheWarning for each in caught)
    for folder in {folder.parent.parent for folder in outside}:
        assert folder.stat().st_mode & 0o777 == 0o700
        shutil.rmtree(folder)
    return [str(each.message) for each in caught]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Store(tmp_path / "file" / "cache")
    messages = build_twice_and_count_warnings(cache, Builder())
    assert len(messages) == 1
    assert f"the kernel cache {cache.folder} cannot be written to (Not a directory)" in messages[0]
    assert "free some space there, make it writable, or set FLEXTRACE_CACHE_DIR to a folder that is" in messages[0]


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    assert "(File exists)" in build_twice_and_count_warnings(Store(tmp_path / "cache"), Builder())[0]


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("step", ["mkdir", "rename", "open"])
def test_every_step_of_the_store_may_fail(cache: Store, monkeypatch: pytest.MonkeyPatch, error: int, step: str) -> None:
    fail_under(cache.folder, error, step, monkeypatch)
    messages = build_twice_and_count_warnings(cache, Builder())
    assert len(messages) == 1 and f"({os.strerror(error)})" in messages[0]
    monkeypatch.undo()
    if cache.folder.exists():
        assert list(cache.folder.glob("building/*")) == [] and cache.entries() == []


def test_what_is_there_already_is_read_from_a_read_only_disk(cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builder()
    there = cache.get_or_build(KEY, build)
    os.utime(there.folder / "manifest.json", (1e9, 1e9))
    for step in ("mkdir", "rename", "utime"):
        fail_under(cache.folder, errno.EROFS, step, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get_or_build(KEY, build).folder == there.folder
    with pytest.warns(CacheWarning, match="Read-only file system"):
        assert cache.get_or_build(OTHER, build).folder != there.folder
    assert cache.get_or_build(KEY, build).folder == there.folder and len(build.folders) == 2


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EINVAL])
def test_a_file_system_without_locks_is_not_waited_for(
    cache: Store, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    real, asked = fcntl.flock, []

    def flock(handle: int, operation: int) -> None:
        if os.path.samestat(os.fstat(handle), os.stat(cache.folder / "locks" / f"{KEY}.lock")):
            asked.append(operation)
            raise OSError(error, os.strerror(error))
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    with pytest.warns(CacheWarning, match=re.escape(f"({os.strerror(error)})")):
        entry = cache.get_or_build(KEY, Builder())
    assert len(asked) == 1 and cache.folder not in entry.folder.parents


def test_a_lock_file_that_may_not_be_opened_is_not_waited_for(cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_under(cache.folder / "locks", errno.EACCES, "open", monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    with pytest.warns(CacheWarning, match="Permission denied"):
        cache.get_or_build(KEY, Builder())


def test_a_builder_that_runs_out_of_disk_builds_elsewhere(cache: Store) -> None:
    build = Builder()

    def full(folder: Path) -> dict[str, Any]:
        if cache.folder in folder.parents:
            (folder / "half").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return build(folder)

    with pytest.warns(CacheWarning, match=r"\(No space left on device\)") as caught:
        cache.get_or_build(KEY, full)
    assert len(caught) == len(build.folders) == 1 and list(cache.folder.glob("building/*")) == []


def test_a_compiler_that_fails_on_a_full_disk_is_run_elsewhere(cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builder()
    full_disk = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(fallback, "probe", lambda at: full_disk if cache.folder in at.parents else None)

    def full(folder: Path) -> dict[str, Any]:
        if cache.folder in folder.parents:
            raise RuntimeError("g++: exit status 1")
        return build(folder)

    with pytest.warns(CacheWarning, match=r"\(No space left on device\)"):
        cache.get_or_build(KEY, full)
    assert len(build.folders) == 1


def test_a_builders_error_in_the_temporary_folder_passes_through(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    raised = RuntimeError("line 3")

    def fail(folder: Path) -> dict[str, Any]:
        raise raised

    with pytest.warns(CacheWarning), pytest.raises(RuntimeError) as caught:
        Store(tmp_path / "file" / "cache").get_or_build(KEY, fail)
    assert caught.value is raised and caught.value.__context__ is None


def test_no_folder_at_all_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(fallback, "probe", lambda folder: OSError(errno.ENOSPC, "full"))
    cache = Store(tmp_path / "file" / "cache")
    message = r"neither the kernel cache nor a temporary folder can be written to \(no room\). Remedy: free some "
    with pytest.warns(CacheWarning), pytest.raises(CacheError, match=message):
        cache.get_or_build(KEY, Builder())


def test_a_temporary_folder_that_fills_up_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Store(tmp_path / "file" / "cache")

    def full(folder: Path) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.warns(CacheWarning),
        pytest.raises(CacheError, match=r"neither .* \(No space left on device\)") as caught,
    ):
        cache.get_or_build(KEY, full)
    assert isinstance(caught.value.__cause__, OSError)
    assert "set FLEXTRACE_CACHE_DIR or TMPDIR to a writable folder that is not mounted noexec" in str(caught.value)


def test_threads_share_the_temporary_folder_and_the_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    build, found = Builder(), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [
            threading.Thread(target=lambda: found.append(Store(tmp_path / "file" / "cache").get_or_build(KEY, build)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({entry.folder for entry in found}) == 1 and len(found) == 8
    assert len(build.folders) == 1 and len(caught) == 1


EXIT = """
import os, sys, multiprocessing
from pathlib import Path
from flextrace.cache import Store, key_of
def build(folder):
    (folder / "kernel.so").write_bytes(b"code")
    return {}
def use():
    entry = Store(Path(sys.argv[1])).get_or_build(key_of("the kernel"), build)
    assert (entry.folder / "kernel.so").read_bytes() == b"code"
    print(entry.folder, flush=True)
if __name__ == "__main__":
    use()
    worker = multiprocessing.get_context("fork").Process(target=use)
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    use()
"""


def test_the_temporary_folder_goes_at_exit_and_a_forked_worker_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "exit.py").write_text(EXIT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "exit.py"), str(tmp_path / "file" / "cache")],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    parent, worker, again = done.stdout.split()
    assert parent == again != worker
    assert parent.startswith(str(tmp_path / "tmp")) and worker.startswith(str(tmp_path / "tmp"))
    assert list((tmp_path / "tmp").iterdir()) == []
    assert done.stderr.count("CacheWarning") == 1
