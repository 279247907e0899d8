"""Folder -> Entry: what one cache entry is on disk, how it is sealed, and how a reader verifies it.

<cache>/kernels/<first 2 hex>/<key>/manifest.json     key, created, the builder's fields, every file's sha256
<cache>/kernels/<first 2 hex>/<key>/<files>           as the builder wrote them: the source beside its binary
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FORMAT = 1  # an entry of any other format is rebuilt
MANIFEST = "manifest.json"
OWN_FIELDS = ("format", "key", "created", "files", "manifest_sha256")
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
TOUCH_SECONDS = 60.0  # a hit notes its time at most this often: `used` is for prune, and a write costs on NFS


class CacheError(RuntimeError):
    """The cache refuses to go on; the message says why and names the remedy.

    Example:
        >>> import os, tempfile
        >>> from pathlib import Path
        >>> from flextrace.cache import CacheError, Store, key_of
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     os.chmod(folder, 0o777)  # another user could put code there
        ...     try:
        ...         Store(Path(folder)).get(key_of(b"int f();"))
        ...     except CacheError as error:
        ...         print("can be written to by others" in str(error))
        True
    """


class Damaged(Exception):
    """Internal: this folder is not a whole entry. Carries the reason; the store rebuilds it."""


@dataclass(frozen=True)
class Entry:
    """One entry of the store: its files, as in `entry.folder / "kernel.so"`, and its manifest."""

    key: str
    folder: Path
    manifest: dict[str, Any]
    used: float
    """when it was last handed out, in seconds since the epoch, to within a minute"""
    contents: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)
    """the bytes of each file, as they were verified: what to use as code; empty if only the manifest was read"""

    @property
    def size(self) -> int:
        """Bytes of the entry's files, the manifest not counted."""
        return sum(int(file["bytes"]) for file in self.manifest["files"].values())


def key_of(*parts: str | bytes) -> str:
    """Content -> key: sha256 over the parts, each behind its length, so that ("ab", "c") is not ("a", "bc").

    >>> key_of("source text", "g++ 12.2", "-O3")[:12]
    '89d47333fe5a'
    """
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def seal(folder: Path, key: str, fields: dict[str, Any], required: Sequence[str]) -> Entry:
    """Finish a built folder: private modes, a manifest with every file's sha256 and size, all on disk.

    Raises CacheError where the builder left something that is no entry, TypeError for fields that JSON lacks.
    """
    files: dict[str, dict[str, Any]] = {}
    contents: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISDIR(mode):
            path.chmod(0o700)
            continue
        if not stat.S_ISREG(mode):
            raise CacheError(f"the builder left {name!r}, which is no regular file: write a copy, not a link")
        path.chmod(0o700 if mode & stat.S_IXUSR else 0o600)
        content = contents[name] = path.read_bytes()
        files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        flush(path)
    if missing := [name for name in required if name not in files]:
        raise CacheError(f"the builder did not write {missing}, only {sorted(files)}: write it, or do not require it")
    if taken := sorted({*OWN_FIELDS} & {*fields} | {MANIFEST} & {*files}):
        raise CacheError(f"the builder uses {taken}, which the store writes itself: choose other names")

    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text = json.dumps({"format": FORMAT, "key": key, "created": created, **fields, "files": files})
    manifest: dict[str, Any] = json.loads(text)
    manifest["manifest_sha256"] = _manifest_sha256(manifest)
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    path.chmod(0o600)
    for written in (path, *(each for each in folder.rglob("*") if each.is_dir()), folder):
        flush(written)
    return Entry(key, folder, manifest, time.time(), contents)


def read_manifest(folder: Path) -> Entry:
    """The entry in `folder` by its manifest alone, its files not read. Raises Damaged, OSError if none."""
    with _opened(folder) as handle:
        return _entry(folder, handle)


def read_entry(folder: Path, required: Sequence[str] = ()) -> Entry:
    """The entry in `folder`, every file checked by its sha256. Raises Damaged, OSError if there is none."""
    with _opened(folder) as handle:
        entry = _entry(folder, handle)
        files = entry.manifest["files"]
        for name in required:
            if name not in files:
                raise Damaged(f"it has no {name}")
        for name, expected in files.items():
            content, _ = _read(name, handle)
            if len(content) != expected["bytes"]:
                raise Damaged(f"{name} has {len(content)} bytes, not {expected['bytes']}")
            if hashlib.sha256(content).hexdigest() != expected["sha256"]:
                raise Damaged(f"{name} differs from its checksum")
            entry.contents[name] = content
    return entry


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """The folder itself, opened: all files of an entry are read from one folder, whatever its name stands for next."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise Damaged("the entry is no folder") from error
        raise
    try:
        if _writable_by_others(os.fstat(handle)):
            raise Damaged("the entry's folder can be written to by others")
        yield handle
    finally:
        os.close(handle)


def _entry(folder: Path, handle: int) -> Entry:
    content, status = _read(MANIFEST, handle)
    try:
        manifest = json.loads(content)
        found, key, checksum = manifest["format"], manifest["key"], manifest["manifest_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} cannot be parsed") from error
    if found != FORMAT:
        raise Damaged(f"it has format {found!r}, not {FORMAT}")
    if checksum != _manifest_sha256(manifest) or key != folder.name:
        raise Damaged(f"{MANIFEST} differs from its checksum")
    return Entry(key, folder, manifest, status.st_mtime)


def note_use(entry: Entry, now: float) -> None:
    """Remember that the entry was handed out, for prune. A cache that can only be read serves too."""
    if now - entry.used > TOUCH_SECONDS:
        try:
            os.utime(entry.folder / MANIFEST, (now, now))
        except OSError:
            return


def _manifest_sha256(manifest: dict[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _writable_by_others(status: os.stat_result) -> bool:
    return status.st_uid != os.geteuid() or bool(status.st_mode & OTHERS_WRITE)


def _read(name: str, folder: int) -> tuple[bytes, os.stat_result]:
    try:
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except OSError as error:
        raise Damaged(f"{name} cannot be read: {error.strerror}") from error
    if _writable_by_others(status):
        raise Damaged(f"{name} can be written to by others")
    return content, status


def flush(path: Path) -> None:
    """Have the file or folder reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
