"""`flextrace vocabulary`: what a mod may be written with."""

from __future__ import annotations


def vocabulary() -> None:
    """Print what a mod can contain, as a Markdown table made from the tracer's own tables."""
    from flextrace.tracer.vocabulary import vocabulary as table

    print(table(), end="")
