"""Code of a function -> its source as canonical text: rendered anew from the tree, comments and spacing gone."""

from __future__ import annotations

import ast
import re
import textwrap
import types
import warnings

from .find import source_of


def canonical_source(code: types.CodeType) -> str:
    """The function's source, for manifests, `inspect()` and messages.

    Raises:
        Untraceable: as `source_of`.
    """
    return render(source_of(code).node)


def render(node: ast.AST) -> str:
    """`node` as Python text, by astor; by `ast.unparse` where astor cannot (it needs names that Python 3.14 drops)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            import astor
        except (ImportError, AttributeError):
            return ast.unparse(node)
        text = textwrap.dedent(str(astor.to_source(node))).strip()
        return re.sub(r"^(\s*def .*\)) ->(?=\S)", r"\1 -> ", text, flags=re.MULTILINE)  # astor leaves that space out
