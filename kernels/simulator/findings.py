"""Raw findings of the runtime -> messages with file, line, lanes and buffer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .build import headers, places
from .report import Finding

KINDS = {
    1: "race",
    2: "overlapping write",
    3: "uninitialised read",
    4: "out of bounds",
    5: "write to input",
    6: "divergent",
    7: "bad lane",
    8: "threadgroup memory limit",
    9: "wild access",
    10: "stack overflow",
    11: "asynchronous copy",
    12: "misaligned",
}
OPERATIONS = (
    "nothing",
    "threadgroup_barrier",
    "simdgroup_barrier",
    "a shuffle",
    "a simdgroup reduction",
    "a simdgroup matrix product",
    "simdgroup_load",
    "simdgroup_store",
    "the end of the kernel",
    "simdgroup_async_copy",
    "the wait for an asynchronous copy",
)
COPY_FAULTS = (  # enum CopyFault of async.h; a GPU may hang
    "that nobody waited for",
    "whose tile nobody reads before the next copy to it, or the end of the kernel; read it, or do not copy",
    "with no threadgroup_barrier between its wait and the end of the kernel",
)
_OWN = {file.name for file in headers()} | {"ptx.h"}  # an instruction of CUDA; its caller says more
NO_SPACE = 1000


def place_of(library: Path, address: int) -> str:
    """file:line in the kernel's own text of an address in its library."""
    found = places(str(library), address)
    own = [(file, line) for file, line in found if Path(file).name not in _OWN]
    for file, line in own or found:
        return f"{Path(file).name}:{line}"
    return "unknown place (install binutils: addr2line gives file and line)"


def explain(
    raw: Any, library: Path, buffers: Sequence[tuple[str, int, int]], variables: Sequence[tuple[str, int]]
) -> Finding:
    """One finding. `buffers`: name, item size, bytes of each; `variables`: name, bytes of threadgroup variables."""
    kind = KINDS[raw.kind]
    place = place_of(library, raw.pc)
    lanes = tuple(lane for lane in (raw.lane, raw.other_lane) if lane >= 0)
    name, where = _space(raw, buffers, variables)
    me = f"{_lane(raw.lane)} of threadgroup {_group(raw.group)}"
    verb = {1: "writes", 0: "reads"}.get(raw.write, "accesses")
    if kind in ("race", "overlapping write"):
        other_group = tuple(raw.other_group)
        same = other_group == tuple(raw.group)
        them = _lane(raw.other_lane) + ("" if same else f" of threadgroup {_group(other_group)}")
        past = "wrote" if raw.other_write else "read"
        if not same:
            remedy = "threadgroups are not ordered; let one of them own it, or use atomics"
        elif raw.space < 0:
            remedy = "no barrier with mem_flags::mem_threadgroup lies between"
        else:
            remedy = "no barrier with mem_flags::mem_device lies between"
        message = f"{me} {verb} {where}, which {them} {past} at {place_of(library, raw.other_pc)}; {remedy}"
    elif kind == "uninitialised read":
        hint = "since the threadgroup began" if raw.space < 0 else "and the call gave no init_value"
        message = f"{me} reads {where}, which nobody wrote {hint}"
    elif kind == "out of bounds":
        message = f"{me} {verb} {f'{raw.size} bytes at ' if raw.size else ''}{where}"
    elif kind == "misaligned":
        message = f"{me} {verb} {raw.size} bytes at {where}, an address that is no multiple of {raw.size}"
    elif kind == "write to input":
        message = f"{me} writes {where}, an input"
    elif kind == "divergent":
        message = _divergent(raw, library, me)
    elif kind == "bad lane":
        message = f"{me} takes the value of lane {raw.offset % 2**32}, but its simdgroup has {raw.size} lanes"
    elif kind == "threadgroup memory limit":
        message = f"the kernel declares {raw.size:,} bytes of threadgroup memory; the limit is 32,768"
    elif kind == "stack overflow":
        message = f"{me} overflows its stack of 256 KiB: large local arrays, or recursion, which Metal refuses"
    elif kind == "wild access":
        message = f"{me} follows a pointer that leads into no buffer"
    else:
        message = f"{me} leaves an asynchronous copy {COPY_FAULTS[raw.write]}"
    return Finding(kind, message, place, name, lanes)


def _divergent(raw: Any, library: Path, me: str) -> str:
    here, there = OPERATIONS[raw.write], OPERATIONS[raw.other_write]
    if raw.other_write == 0:
        return f"{me} is at {here}, which needs a whole simdgroup; this one ends before {_lane(raw.other_lane)}"
    at = f" at {place_of(library, raw.other_pc)}" if raw.other_pc else ""
    return f"{me} is at {here} while {_lane(raw.other_lane)} is at {there}{at}; every lane must come to the same one"


def _lane(lane: int) -> str:
    return f"lane {lane % 32} of simdgroup {lane // 32}"


def _group(group: Any) -> str:
    return "({}, {}, {})".format(*group)


def _space(raw: Any, buffers: Sequence[tuple[str, int, int]], variables: Sequence[tuple[str, int]]) -> tuple[str, str]:
    """The buffer's name, and the access in words."""
    if raw.space == NO_SPACE:
        return "", "no buffer"
    if raw.space < 0:
        index = -1 - raw.space
        if index >= len(variables):
            return "threadgroup memory", f"byte {raw.offset} behind the threadgroup memory"
        name, size = variables[index]
        return name, f"byte {raw.offset} of threadgroup {name!r} ({size} bytes)"
    if raw.space >= len(buffers):
        return "", "an address between the buffers"
    name, item, size = buffers[raw.space]
    return name, f"element {raw.offset // item} of {name!r} ({size // item} elements)"
