"""What no reader takes -> the reason and what to write instead, in the same words from every reader."""

from __future__ import annotations

from ..errors import Untraceable
from ..expr.node import Expr

MAX_ITERATIONS = 10_000
REMEDIES: dict[str, str] = {  # keyword of a statement -> what to write instead
    "try": "a kernel raises nothing: test the condition with `if`",
    "with": "open resources outside the mod and capture what they give",
    "async with": "open resources outside the mod and capture what they give",
    "global": "a mod must not change outside variables: return the value instead",
    "nonlocal": "a mod must not change outside variables: return the value instead",
    "del": "just stop using the name",
    "class": "define the class outside the mod",
    "match": "write if/elif",
    "async for": "write a plain for",
    "async def": "write a plain def",
    "type": "define the alias outside the mod",
}


def statement(keyword: str) -> Untraceable:
    return Untraceable(*why_statement(keyword))


def why_statement(keyword: str) -> tuple[str, str]:
    """The reason and the remedy."""
    remedy = REMEDIES.get(keyword, "use if, for, assignments and return")
    return f"the statement `{keyword}` has no meaning in a mod", remedy


def changed_object() -> Untraceable:
    return Untraceable("a mod must not change objects", "keep intermediate values in local variables")


def endless() -> Untraceable:
    return Untraceable(f"a loop ran {MAX_ITERATIONS} times", "give it an end that plain Python reaches soon")


def while_on(truth: Expr) -> Untraceable:
    return Untraceable(
        f"`while` on {truth!r}, which is known only inside the kernel",
        "loop over a fixed range and stop with `if`: for _ in range(8): if not (...): break",
    )


def assert_in_kernel() -> Untraceable:
    return Untraceable("an assert on a value known only inside the kernel", "check captured values outside the mod")


def assertion_failed(message: str) -> Untraceable:
    """message: with what stands before it, or empty."""
    return Untraceable(f"assertion failed{message}", "call the mod with values that satisfy it")


def kept_in_kernel() -> Untraceable:
    """A comprehension has an element for some lanes only."""
    return Untraceable(
        "a comprehension keeps elements by a condition known only inside the kernel",
        "keep every element and make the unwanted ones neutral: sum(x if c else 0 for ...)",
    )


def given_twice(name: str) -> Untraceable:
    return Untraceable(f"a call gives {name} twice", "pass it once")
