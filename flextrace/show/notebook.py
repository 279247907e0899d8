"""Notebook cells -> displays: the magics of `%load_ext flextrace`.

    %%flex_source metal     define the mods of the cell, then show what each becomes in the kernel
    %flex_cache             the kernels on disk, the last used first

In a terminal they show text.
"""

from __future__ import annotations

import ast
import dis
import time
from typing import Any

from flextrace.decorators import Mod
from flextrace.kernels.registry import default_name
from flextrace.kernels.template.hole import written_by
from flextrace.tracer import name_of
from flextrace.tracer.source.signature import wrapped

from .cache_table import CacheRow, human_size, rows
from .html import display as as_display
from .html import table
from .mods import kernel_html

BACKENDS = ("metal", "cuda", "cpu")
STORES = ("STORE_NAME", "STORE_GLOBAL")  # the instructions by which a cell binds a name


class Shown:
    """A display: HTML where a notebook shows it, text in a terminal."""

    def __init__(self, html: str, text: str) -> None:
        self.html: str = html
        self.text: str = text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


class Magics:
    """The magics of one IPython shell."""

    def __init__(self, shell: Any) -> None:
        self.shell: Any = shell

    def flex_source(self, line: str, cell: str) -> None:
        """%%flex_source [metal|cuda|cpu]: define the mods of the cell, then show what each becomes in the kernel.

        Without a backend, that of the device that MLX uses.
        """
        from IPython.core.error import UsageError

        backend, *more = line.split() or [default_name()]
        if more or backend not in BACKENDS:
            raise UsageError(f"%%flex_source takes a backend, {' or '.join(BACKENDS)}, or nothing; got {line!r}")
        namespace = self.shell.user_ns
        names = run_cell(self.shell, f"%%flex_source {line}\n", cell)
        mods = {id(namespace[name]): namespace[name] for name in names if isinstance(namespace.get(name), Mod)}
        if not mods:
            classes = [namespace[name] for name in names if isinstance(namespace.get(name), type)]
            methods = [(c.__name__, name) for c in classes for name, mod in vars(c).items() if isinstance(mod, Mod)]
            instead = "decorate a function with @flex.score_mod or @flex.mask_mod"
            for owner, name in methods[:1]:
                instead = f"{owner}.{name} is a method, take that of an instance: my = {owner}(...).{name}"
            raise UsageError(f"the cell of %%flex_source defines no mod; {instead}")
        for mod in mods.values():
            text = mod.source(backend)
            lines = [line for excerpt in written_by([mod.kind], text) for line in excerpt.lines]
            title = f"{mod.kind} {name_of(wrapped(mod))} on {backend}"
            shown = {"text/html": kernel_html(text, title, [mod.kind]), "text/plain": "\n".join([title, *lines])}
            self.shell.display_pub.publish(shown)

    def flex_cache(self, line: str) -> Shown:
        """%flex_cache: the kernels on disk, the last used first."""
        from IPython.core.error import UsageError

        if line.strip():
            raise UsageError(f"%flex_cache takes no argument, got {line!r}; `flextrace cache` has more to offer")
        return cache_display(rows())


def run_cell(shell: Any, above: str, cell: str) -> list[str]:
    """Run the rest of a cell in the user's namespace; the names that it binds.

    `above` is its first line, so that line numbers are those of the cell. A last expression is shown, as ever, and
    hidden by a semicolon.
    """
    blank = cell[: len(cell) - len(cell.lstrip())].count("\n")  # transform_cell drops these lines
    source = "\n" * (1 + blank) + shell.transform_cell(cell).lstrip("\n")
    filename = shell.compile.cache(source, shell.displayhook.prompt_count, raw_code=above + cell)
    tree = shell.transform_ast(shell.compile.ast_parse(source, filename=filename))
    shown = tree.body and isinstance(tree.body[-1], ast.Expr)
    shown = shown and not shell.displayhook.semicolon_at_end_of_expression(source)
    last = tree.body.pop() if shown else None
    names: list[str] = []
    for part, mode in ((tree, "exec"), (ast.Interactive([last] if last else []), "single")):
        if part.body:
            code = shell.compile(part, filename, mode)
            exec(code, shell.user_ns)
            names += [step.argval for step in dis.get_instructions(code) if step.opname in STORES]
    return names


def cache_display(found: list[CacheRow]) -> Shown:
    """The rows of the cache as a table."""
    head = ("mod", "backend", "kernel", "size", "last used", "key", "")
    lines = [
        (
            " + ".join(row.mods) or "-",
            row.backend,
            row.kernel,
            human_size(row.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(row.used)) if row.used else "",
            row.key[:12],
            f"damaged: {row.damage}" if row.damage else "",
        )
        for row in found
    ]
    several = "" if len(found) == 1 else "s"
    title = f"{len(found)} kernel{several} on disk, {human_size(sum(row.size for row in found))}"
    text = "\n".join([title, *("  ".join(cells).rstrip() for cells in lines)])
    return Shown(as_display(f'<div class="head">{title}</div>', table(head, lines, numbers=[3]) if found else ""), text)


def load_ipython_extension(ipython: Any) -> None:
    """What `%load_ext flextrace` runs."""
    magics = Magics(ipython)
    ipython.register_magic_function(magics.flex_source, "cell", "flex_source")
    ipython.register_magic_function(magics.flex_cache, "line", "flex_cache")
    try:
        from IPython.extensions.autoreload import UPDATE_RULES
    except ImportError:  # an IPython whose %autoreload has no such rules: imported mods stay the old ones
        return
    if RELOADED not in UPDATE_RULES:
        UPDATE_RULES.append(RELOADED)


def _are_mods(old: object, new: object) -> bool:
    return isinstance(old, Mod) and isinstance(new, Mod)


def _become(old: Mod, new: Mod) -> None:
    """After an edit of its module a mod that was imported from there is the one that the module has now."""
    old.__class__ = new.__class__
    old.__dict__ = dict(vars(new))


RELOADED = (_are_mods, _become)  # a rule of IPython's %autoreload
