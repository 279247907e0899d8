"""Folder -> whether only this user, and root, can change what is in it and where the way to it leads.

Kernels are loaded as code, so whoever can put one there, or another folder in the place of one above, runs code
as this user. Two rules: the cache's own folders belong to the user, and nobody else can write to them; every folder
above, and every link on the way, belongs to root or to the user, and nobody else can rename what is in it. So
a folder above may be writable for others with the sticky bit, as /tmp is, or for a group that is the user's
alone (one named after the user, as many systems make it) or root's own.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .entry import OTHERS_WRITE, CacheError

MAX_LINKS = 40  # as Linux has it
CODE = "Kernels are loaded from it as code, so whoever can write there can run code as you."
ELSEWHERE = "set FLEXTRACE_CACHE_DIR to a folder of your own"


def check_trusted(folder: Path) -> None:
    """Refuse a folder that somebody else could put a binary into. Raises CacheError, OSError."""
    status = os.stat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if status.st_uid != os.geteuid():
        fault = f"belongs to uid {status.st_uid}, not to you (uid {os.geteuid()})"
        remedy = ELSEWHERE
    elif status.st_mode & OTHERS_WRITE:
        fault = f"can be written to by others (mode {stat.S_IMODE(status.st_mode):04o})"
        remedy = f"chmod go-w '{folder}', or {ELSEWHERE}"
    else:
        return
    raise CacheError(f"the kernel cache folder {folder} {fault}. {CODE} Remedy: {remedy}.")


def check_way(folder: Path) -> None:
    """Refuse an absolute path that somebody else could make lead elsewhere, as far as it exists.

    Each name is looked up in a folder that was found good before, so none of those can change in between.
    Raises CacheError, OSError.
    """
    place, links = "/", 0
    _check_step(place, os.lstat(place), folder)
    ahead = _names(str(folder))
    while ahead:
        name = ahead.pop()
        if name == "..":
            place = os.path.dirname(place)
            continue
        path = os.path.join(place, name)
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
            _check_owner(path, status, folder)
            target = os.readlink(path)
            place = "/" if target.startswith("/") else place
            ahead += _names(target)
        elif ahead:
            _check_step(path, status, folder)
            place = path
        else:
            _check_owner(path, status, folder)  # the folder itself: check_trusted asks more of it


def _names(path: str) -> list[str]:
    """The names of a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _check_step(path: str, status: os.stat_result, folder: Path) -> None:
    _check_owner(path, status, folder)
    mode = status.st_mode
    if mode & stat.S_ISVTX or not mode & OTHERS_WRITE:
        return
    if not mode & stat.S_IWOTH and _is_own_group(status.st_gid):
        return
    fault = f"can be written to by others (mode {stat.S_IMODE(mode):04o}, no sticky bit)"
    raise _refusal(path, fault, f"chmod go-w '{path}'", folder)


def _check_owner(path: str, status: os.stat_result, folder: Path) -> None:
    if status.st_uid not in (0, os.geteuid()) and not _is_root_outside(status.st_uid):
        raise _refusal(path, f"belongs to uid {status.st_uid}, neither to root nor to you", "", folder)


def _refusal(path: str, fault: str, remedy: str, folder: Path) -> CacheError:
    remedies = f"{remedy}, or {ELSEWHERE}" if remedy else ELSEWHERE
    return CacheError(
        f"{path}, on the way to the kernel cache {folder}, {fault}: somebody else can put another folder in place of "
        f"the cache. {CODE} Remedy: {remedies}, under folders that only you and root can write to."
    )


def _is_own_group(gid: int) -> bool:
    """Whether only this user and root are in the group: root's own, or one of the user's name without other members."""
    import grp  # rarely needed
    import pwd

    if gid == 0:
        return True
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and {*group.gr_mem} <= {user.pw_name}


def _is_root_outside(uid: int) -> bool:
    """Whether uid stands for users that this container does not know, as the host's root is one in it."""
    try:
        unknown = int(Path("/proc/sys/kernel/overflowuid").read_text())
        known = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except (OSError, ValueError):
        return False
    return uid == unknown and not any(int(first) <= uid < int(first) + int(count) for first, _, count in known)
