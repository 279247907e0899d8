"""Key, builder -> Entry: read a verified entry, or build it once, publish it by a rename, and hand it out.

A hit takes no lock. Entries lie in <cache>/kernels (entry.py), builds in <cache>/building (building.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from .building import KEY, delete, discard, locked, make_folder, make_folders, scratch, sweep
from .entry import Damaged, Entry, flush, note_use, read_entry, read_manifest, seal
from .fallback import Unwritable, nowhere, own_step, private_folder, run_builder, warn_once
from .loading import LoadError, load_copy
from .trust import check_trusted, check_way

LIMIT = 1_000_000_000  # bytes of a cache that nobody asked to be larger: some thousand kernels
Loaded = TypeVar("Loaded")
_private_stores: dict[int, Store] = {}  # by process id: a forked child must not use its parent's


class Store:
    """A folder of entries, each built once and verified at every use. Safe across threads, processes, forks.

    `folder`: default FLEXTRACE_CACHE_DIR, else the user's cache folder; made, with mode 0700, when needed.
    `lock_timeout`: seconds to wait for another process that builds the same key.
    `limit`: bytes that the entries may take; the least recently used go where a build exceeds it.

    >>> import tempfile
    >>> from flextrace.cache import key_of
    >>> store = Store(Path(tempfile.mkdtemp()) / "cache")
    >>> def build(folder):
    ...     print("building")
    ...     _ = (folder / "kernel.cpp").write_text("int f() { return 1; }")
    ...     return {"mod": "alibi"}
    >>> entry = store.get_or_build(key_of("int f() { return 1; }"), build, required=["kernel.cpp"])
    building
    >>> entry = store.get_or_build(key_of("int f() { return 1; }"), build, required=["kernel.cpp"])
    >>> entry.manifest["mod"], (entry.folder / "kernel.cpp").read_text()
    ('alibi', 'int f() { return 1; }')
    """

    def __init__(self, folder: Path | None = None, *, lock_timeout: float = 600.0, limit: int = LIMIT) -> None:
        chosen = folder or os.environ.get("FLEXTRACE_CACHE_DIR")
        if not chosen:
            from platformdirs import user_cache_path  # costs milliseconds, and the variable does without

            chosen = user_cache_path("flextrace")
        self.folder: Path = Path(os.path.abspath(os.path.expanduser(chosen)))
        self.lock_timeout = lock_timeout
        self.limit = limit
        self._private = False  # this is the store of last resort, in a temporary folder
        self._unwritable = False

    def get(self, key: str, required: Sequence[str] = ()) -> Entry | None:
        """The verified entry of `key`, or None if there is none or it is damaged. Takes no lock.

        Raises CacheError if others can write to the cache folder or exchange it, ValueError if `key` is not from
        `key_of`.
        """
        folder = self._folder_of(key)
        try:
            check_way(self.folder)
            for parent in (self.folder, folder.parent.parent, folder.parent):
                check_trusted(parent)
            entry = read_entry(folder, required)
        except (OSError, Damaged):
            return _private_store().get(key, required) if self._unwritable else None
        note_use(entry, time.time())
        return entry

    def peek(self, key: str) -> Entry | None:
        """The entry of `key` by its manifest alone, or None. Verifies no file and counts as no use."""
        try:
            return read_manifest(self._folder_of(key))
        except (OSError, Damaged):
            return None

    def get_or_build(self, key: str, build: Callable[[Path], dict[str, Any]], required: Sequence[str] = ()) -> Entry:
        """The verified entry of `key`. If there is none, or it is damaged, `build(folder)` makes it.

        `build` writes files into the empty folder it is given and returns fields for manifest.json. It runs
        once, however many threads and processes ask. What it raises is raised here, unchanged, and nothing
        stays behind. `required` names the files that an entry must have.

        Where the folder cannot be written to (read-only, full), the entry is built in a temporary folder of
        this process, with one CacheWarning. A folder handed out stays until it is pruned, by this store too
        where it exceeds its limit, or cleared; the entry's `contents` stay, and are what was verified.

        Raises CacheError if others can write to the cache folder or exchange it, another process holds the lock too
        long, no folder at all can be written to, or `build` left something that is no entry; ValueError for a bad key.
        """
        if (entry := self.get(key, required)) is not None:
            return entry
        if not self._unwritable:
            try:
                entry = self._build(key, build, required)
            except Unwritable as failure:
                reason = failure.__cause__
            else:
                self._keep_limit(key)
                return entry
            if self._private:
                raise nowhere(reason) from reason
            self._unwritable = True
            warn_once(self.folder, reason)
        return _private_store().get_or_build(key, build, required)

    def load_or_build(
        self,
        key: str,
        build: Callable[[Path], dict[str, Any]],
        library: str,
        load: Callable[[Path], Loaded],
        required: Sequence[str] = (),
    ) -> tuple[Entry, Loaded]:
        """The entry as get_or_build gives it, and what `load` makes of its file `library`.

        `load(path)` gets a copy of the verified bytes, which is gone when it returns, and raises LoadError where it
        cannot use it. What does not load right after it was built is no entry; an entry from disk that does not load
        is built once more. Raises as get_or_build does, and LoadError.
        """
        made: list[Loaded] = []

        def build_and_load(folder: Path) -> dict[str, Any]:
            fields = build(folder)
            if (folder / library).is_file():  # else get_or_build says what is missing
                made.append(load_copy((folder / library).read_bytes(), library, load, folder))
            return fields

        for last in (False, True):
            entry = self.get_or_build(key, build_and_load, (*required, library))
            if made:
                return entry, made[-1]
            try:
                return entry, load_copy(entry.contents[library], library, load, self.folder / "building")
            except LoadError:
                if last:
                    raise
                self._remove_unloadable(key)
        raise AssertionError("the loop returns or raises")

    def entries(self) -> list[Entry]:
        """Every entry with a readable manifest, the most recently used first; files are not verified."""
        found = []
        for folder in self._folders():
            try:
                found.append(read_manifest(folder))
            except (OSError, Damaged):
                continue  # verify() reports it, the next use rebuilds it
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def verify(self) -> dict[str, str]:
        """Key -> what is wrong with it, for every damaged entry; empty if all are whole. Changes nothing."""
        faults = {}
        for folder in self._folders():
            try:
                read_entry(folder)
            except (OSError, Damaged) as error:
                if os.path.lexists(folder):  # else another process removed it meanwhile
                    faults[folder.name] = str(error)
        return faults

    def size(self, key: str | None = None) -> int:
        """Bytes of all entries on disk, or of one; damaged ones and manifests included."""
        return sum(_size(folder) for folder in (self._folders() if key is None else [self._folder_of(key)]))

    def remove(self, key: str) -> bool:
        """Remove one entry; whether it was there. Raises OSError, ValueError for a bad key."""
        folder = self._folder_of(key)
        if not os.path.lexists(folder):
            return False
        make_folders(self.folder)
        return discard(self.folder, folder)

    def prune(self, max_bytes: int | None = None, keep: str = "") -> int:
        """Remove the least recently used entries until `size()` is at most `max_bytes`; how many went.

        max_bytes: None is the store's limit. keep: the key of an entry that stays.

        Raises OSError where nothing can be removed, CacheError if others can write to the cache folder.
        """
        used = {entry.key: entry.used for entry in self.entries()}  # one that is damaged goes first
        sizes = {folder.name: _size(folder) for folder in self._folders()}
        total, removed = sum(sizes.values()), 0
        max_bytes = self.limit if max_bytes is None else max_bytes
        sizes = {key: size for key, size in sizes.items() if key != keep}
        for key in sorted(sizes, key=lambda key: used.get(key, 0.0)):
            if total <= max_bytes:
                break
            removed += self.remove(key)
            total -= sizes[key]
        if (self.folder / "building").is_dir():
            sweep(self.folder)
        return removed

    def clear(self) -> int:
        """Remove every entry; how many went. What a live process is building stays. Raises as prune does."""
        return self.prune(-1)

    def _folder_of(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError(f"a cache key is 64 hexadecimal digits, got {key!r}: make it with key_of(...)")
        return self.folder / "kernels" / key[:2] / key

    def _folders(self) -> list[Path]:
        kernels = self.folder / "kernels"
        check_way(self.folder)
        for folder in (self.folder, kernels):
            if not folder.exists():
                return []
            check_trusted(folder)
        return sorted(path for path in kernels.glob("??/*") if KEY.fullmatch(path.name))

    def _keep_limit(self, built: str) -> None:
        """Remove what was not used for longest where a build has made the store too large.

        It goes down to nine tenths, so that not every later build removes something. What another process removes
        at the same time is gone as well; what cannot be removed stays, the kernel was built.
        """
        with suppress(OSError):
            if self.size() > self.limit:
                self.prune(self.limit * 9 // 10, keep=built)

    def _remove_unloadable(self, key: str) -> None:
        for store in (self, _private_stores.get(os.getpid())):
            if store is not None:
                with suppress(OSError):  # then it stays, and the next try raises
                    store.remove(key)

    def _build(self, key: str, build: Callable[[Path], dict[str, Any]], required: Sequence[str]) -> Entry:
        with own_step():
            make_folders(self.folder)
        with locked(self.folder, key, self.lock_timeout):
            if (entry := self.get(key, required)) is not None:
                return entry  # somebody else built it while this one waited
            with own_step():
                sweep(self.folder, held=key)
                folder = scratch(self.folder, key)
                folder.mkdir(mode=0o700)
            try:
                fields = run_builder(build, folder)
                with own_step():
                    return self._publish(folder, seal(folder, key, fields, required))
            except BaseException:
                delete(folder)
                raise

    def _publish(self, folder: Path, built: Entry) -> Entry:
        final = self._folder_of(built.key)
        make_folder(final.parent)
        if os.path.lexists(final):  # damaged, yet a process may have it open or loaded: never written over
            discard(self.folder, final)
        os.rename(folder, final)
        flush(final.parent)
        return replace(built, folder=final)


def _private_store() -> Store:
    pid = os.getpid()
    if pid not in _private_stores:
        store = Store(private_folder())
        store._private = True
        _private_stores.setdefault(pid, store)  # where two threads are here at once, one wins; both folders go at exit
    return _private_stores[pid]


def _size(folder: Path | str) -> int:
    total = 0
    try:
        with os.scandir(folder) as inside:
            for item in inside:
                total += item.stat(follow_symlinks=False).st_size
                total += _size(item.path) if item.is_dir(follow_symlinks=False) else 0
    except (FileNotFoundError, NotADirectoryError):
        pass  # removed meanwhile, or no folder
    return total
