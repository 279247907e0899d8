"""Steps -> flow: blocks, the order in which lanes that part come together again, and loops.

A compiler copies the end of a function to where it is reached from; such copies become one block again, so that what
follows an `if` is read once, as it was written. Which jumps it leads past a test whose outcome is known differs by
version and by line; here all of them are.
"""

from __future__ import annotations

import heapq
import itertools
import types
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from .decode import Step, decode

ENDS = ("return", "raise", "refused")  # after these nothing follows


@dataclass(eq=False)
class Block:
    """Steps that are done one after the other, and where they lead.

    after: the blocks that may follow: of a branch the one jumped to comes first; of a loop's `next` the end does.
    at: where its first step stands in the code.
    order: a block comes after all that lead to it, but for the jumps back of loops; else as they stand in the code.
    loop: the loop that this block is the head of.
    """

    steps: list[Step]
    after: list[Block] = field(default_factory=list)
    at: int = 0
    order: int = -1
    loop: Loop | None = None

    @property
    def last(self) -> Step | None:
        return self.steps[-1] if self.steps else None


@dataclass(eq=False)
class Loop:
    """A loop: its first block, to which some of its blocks jump back, and all of its blocks."""

    head: Block
    blocks: set[Block]


@lru_cache(maxsize=512)
def flow_of(code: types.CodeType) -> Block:
    """The first block of a function's code, and from there all others."""
    entry = _blocks(decode(code))
    _keep_decided(entry)
    _pass_known_tests(entry)
    _join_copies(entry)
    _order(entry)
    return entry


def _blocks(steps: list[Step]) -> Block:
    """Cut steps into blocks at every target of a jump and after every jump."""
    starts = {0}
    for index, step in enumerate(steps):
        if step.target is not None:
            starts |= {step.target, index + 1}
        elif step.do in (*ENDS, "yield"):
            starts.add(index + 1)
    cuts = sorted(start for start in starts if start < len(steps))
    ends = [*cuts[1:], len(steps)]
    blocks = {start: Block(steps[start:end], at=start) for start, end in zip(cuts, ends, strict=True)}
    for start, block in blocks.items():
        last, following = block.steps[-1], start + len(block.steps)
        if last.target is not None:
            block.after.append(blocks[last.target])
        if last.do == "jump":
            block.steps.pop()
        elif last.do not in ENDS and following in blocks:
            block.after.append(blocks[following])
    return blocks[0]


def reachable(entry: Block) -> list[Block]:
    """The blocks in depth-first postorder."""
    done: list[Block] = []
    seen = {entry}
    stack = [(entry, iter(entry.after))]
    while stack:
        block, after = stack[-1]
        for following in after:
            if following not in seen:
                seen.add(following)
                stack.append((following, iter(following.after)))
                break
        else:
            done.append(block)
            stack.pop()
    return done


# ---- `and` and `or` ----------------------------------------------------------------------------------------


def _keep_decided(entry: Block) -> None:
    """Say of a value that stays where it decides `and` or `or` that the jump keeps it, as an instruction of 3.10 and
    3.11 does: later ones test a copy, and take the value off where it is not wanted."""
    for block in reachable(entry):
        if block.last is None or block.last.do != "branch":
            continue
        wanted, keeps = block.last.value
        target, following = block.after
        if [(step.do, step.value) for step in block.steps[-2:-1]] == [("copy", 1)] and _takes_off(following):
            del block.steps[-2]
            keeps, following = True, _without_first(following)
        if keeps and _takes_off(target):
            keeps, target = False, _without_first(target)
        block.after = [target, following]
        block.steps[-1] = replace(block.last, value=(wanted, keeps), grows=(-1, 0 if keeps else -1))


def _takes_off(block: Block) -> bool:
    return bool(block.steps) and block.steps[0].do == "pop"


def _without_first(block: Block) -> Block:
    """What follows the first step of a block, which is cut off for those who come there by another way."""
    if len(block.steps) > 1:
        rest = Block(block.steps[1:], block.after, at=block.at + 1)
        block.steps, block.after = block.steps[:1], [rest]
    return block.after[0]


def _pass_known_tests(entry: Block) -> None:
    """Lead a jump that keeps its value past tests of that same value: of `a and b or c`, where `a` is false, to `c`."""
    for block in reachable(entry):
        while block.last is not None and block.last.do == "branch" and block.last.value[1]:
            wanted, test = block.last.value[0], _behind_jumps(block.after[0])
            if test is block or [step.do for step in test.steps] != ["branch"]:
                break
            jumps_if, keeps = test.steps[0].value
            jumps = jumps_if is wanted
            block.after[0] = test.after[0 if jumps else 1]
            if not (jumps and keeps):
                block.steps[-1] = replace(block.last, value=(wanted, False), grows=(-1, -1))


def _behind_jumps(block: Block) -> Block:
    """The first block with steps, from one on that may only jump on: as from the end of an arm of `x if c else y`."""
    seen = {block}
    while not block.steps and block.after[0] not in seen:
        block = block.after[0]
        seen.add(block)
    return block


# ---- copies ------------------------------------------------------------------------------------------------


def _join_copies(entry: Block) -> None:
    """Make one block of the equal ends of blocks that lead to the same place."""
    while (copies := _copies(entry)) is not None:
        _share_end(entry, *copies)


def _copies(entry: Block) -> tuple[Block, Block, int] | None:
    """Two blocks that end alike, and how many of their last steps are the same."""
    blocks = reachable(entry)
    has_columns = any(step.span.column is not None for block in blocks for step in block.steps)
    groups: dict[object, list[Block]] = {}
    for block in blocks:
        if block.last is not None and len(block.after) < 2:
            groups.setdefault((*map(id, block.after), block.last.do, block.last.span), []).append(block)
    for a, b in (pair for group in groups.values() for pair in itertools.combinations(group, 2)):
        count = _equal_end(a, b)
        if count and not has_columns:
            count = _end_of_one_value(entry, a, b, count)
        if count:
            return a, b, count
    return None


def _equal_end(a: Block, b: Block) -> int:
    """How many steps at the end are the same."""
    if a.after != b.after:
        return 0
    count = 0
    for x, y in zip(reversed(a.steps), reversed(b.steps), strict=False):
        if x.span.line is None or not x.same_as(y):
            break
        count += 1
    return count


def _end_of_one_value(entry: Block, a: Block, b: Block, count: int) -> int:
    """How many of the last `count` steps, which are the same, surely are copies: there are no columns (3.10), and two
    expressions on one line may end alike, as in `x + 1 if c else y + 1`.

    Between the branch where the ways to `a` and `b` part and where they meet, each side has put one value on the stack
    at most; a step that takes it together with what lay there before the branch stands behind the place where they
    meet.
    """
    while count and not a.steps[-count].begins:
        count -= 1
    depths, before = _depths(entry), _dominators(entry)
    fork = max((before[a] & before[b]) - {a, b}, key=lambda block: len(before[block]), default=None)
    if fork is None:
        return 0
    lowest = min(depth for block, depth in depths.items() if fork in before[block] and block is not fork)
    depth = depths[a] + sum(step.grows[0] for step in a.steps[: len(a.steps) - count])
    if depth <= lowest:  # between statements
        return count
    sure = 0
    for left in range(count, 0, -1):
        if depth == lowest + 1 and a.steps[-left].begins:
            sure = left
        depth += a.steps[-left].grows[0]
        if depth <= lowest:
            return sure
    return 0


def _dominators(entry: Block) -> dict[Block, set[Block]]:
    """The blocks through which every way to a block leads, itself among them."""
    blocks = reachable(entry)[::-1]
    before: dict[Block, list[Block]] = {block: [] for block in blocks}
    for block in blocks:
        for following in block.after:
            before[following].append(block)
    found = {block: {entry} if block is entry else set(blocks) for block in blocks}
    changed = True
    while changed:
        changed = False
        for block in blocks[1:]:
            through = set.intersection(*(found[origin] for origin in before[block])) | {block}
            changed = changed or through != found[block]
            found[block] = through
    return found


def _share_end(entry: Block, a: Block, b: Block, count: int) -> None:
    """Let `a` and `b` go on in one block for their last `count` steps."""
    if count == len(a.steps) and a is not entry:
        shared = a
    elif count == len(b.steps) and b is not entry:
        a, b, shared = b, a, b
    else:
        shared = Block(a.steps[-count:], a.after, at=a.at + len(a.steps) - count)
        a.steps, a.after = a.steps[:-count], [shared]
    b.steps, b.after = b.steps[:-count], [shared]


# ---- order and loops ---------------------------------------------------------------------------------------


def _order(entry: Block) -> None:
    """Number the blocks, and find the loops: jumps back to a block through which every way leads."""
    depths = _depths(entry)
    blocks = _numbered(entry)
    before: dict[Block, list[Block]] = {block: [] for block in blocks}
    for block in blocks:
        for following in block.after:
            before[following].append(block)
    loops = []
    for block in blocks:
        backs = [origin for origin in before[block] if origin.order >= block.order]
        if backs:
            inside = _loop_blocks(block, backs, before)
            block.loop = Loop(block, inside | _ways_out(entry, block, inside))
            loops.append(block.loop)
    for loop in loops:
        if loop.head.last is not None and loop.head.last.do == "next":
            _end_with_iterator(loop, loops, depths)
    _numbered(entry)


def _numbered(entry: Block) -> list[Block]:
    blocks = reachable(entry)[::-1]
    for number, block in enumerate(blocks):
        block.order = number
    onward = {block: [other for other in block.after if other.order > block.order] for block in blocks}
    missing = Counter(other for others in onward.values() for other in others)
    ready = [(entry.at, entry.order, entry)]
    in_order: list[Block] = []
    while ready:
        *_, block = heapq.heappop(ready)
        in_order.append(block)
        for other in onward[block]:
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(ready, (other.at, other.order, other))
    for number, block in enumerate(in_order):
        block.order = number
    return in_order


def _depths(entry: Block) -> dict[Block, int]:
    """How many values lie on the stack where a block begins."""
    depths = {entry: 0}
    stack = [entry]
    while stack:
        block = stack.pop()
        depth = depths[block] + sum(step.grows[0] for step in block.steps[:-1])
        for number, following in enumerate(block.after):
            if following not in depths:
                jumps = block.last is not None and block.last.target is not None and number == 0
                depths[following] = depth + (block.last.grows[jumps] if block.last is not None else 0)
                stack.append(following)
    return depths


def _end_with_iterator(loop: Loop, loops: list[Loop], depths: dict[Block, int]) -> None:
    """A `for` loop ends where its iterator is taken off the stack; a block that does it and more is cut there."""
    depth = depths[loop.head]
    for block in list(loop.blocks):
        if depths[block] < depth:
            loop.blocks.discard(block)
            continue
        now = depths[block]
        for count, step in enumerate(block.steps, 1):
            now += step.grows[0]
            following = [step.do for step in block.steps[count:]]
            if (
                following
                and following[-1] == "return"
                and all(do in ("pop", "swap", "rotate") for do in following[:-1])
            ):
                break  # what is returned was computed within
            if now < depth and following:
                rest = Block(block.steps[count:], block.after, at=block.at + count)
                block.steps, block.after = block.steps[:count], [rest]
                depths[rest] = now
                for other in loops:
                    if other is not loop and block in other.blocks:
                        other.blocks.add(rest)
                break


def _loop_blocks(head: Block, backs: Iterable[Block], before: dict[Block, list[Block]]) -> set[Block]:
    inside = {head}
    stack = [block for block in backs if block is not head]
    while stack:
        block = stack.pop()
        if block not in inside:
            inside.add(block)
            stack += before[block]
    return inside


def _ways_out(entry: Block, head: Block, inside: set[Block]) -> set[Block]:
    """The blocks that only lanes reach which leave the loop from within: what an iteration does before a `break` or
    `return`. Of a loop that ends in no other way it is not known where it ends."""
    if all(block in inside for block in head.after):
        outside = _reachable_without(entry, {head})
        return set(reachable(head)) - outside if outside & {b for block in inside for b in block.after} else set()
    outside = _reachable_without(entry, {block for block in head.after if block in inside})
    return set(reachable(head)) - outside


def _reachable_without(entry: Block, left_out: set[Block]) -> set[Block]:
    found: set[Block] = set()
    stack = [entry]
    while stack:
        block = stack.pop()
        if block not in found and block not in left_out:
            found.add(block)
            stack += block.after
    return found
