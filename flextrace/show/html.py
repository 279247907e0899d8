"""Text -> HTML for notebooks: escaped, without scripts or ids, in the colours of the notebook's theme.

JupyterLab and VS Code set variables and mark a dark theme on `body`; anywhere else `prefers-color-scheme` decides. Ink
and background come from the same place, so that text is readable even where the page's own background is another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_LIGHT = (
    "color-scheme: light; "
    "--back: var(--jp-layout-color0, var(--vscode-editor-background, #fff)); "
    "--ink: var(--jp-content-font-color1, var(--vscode-editor-foreground, #1f2328)); --quiet: #59636e; "
    "--line: #d1d9e0; --shade: #f6f8fa; --mark: #fff3c4; --bad: #b3261e; --bad-back: #fdecea; --good: #1a7f37; "
    "--keyword: #a626a4; --type: #0550ae; --number: #855a00; --string: #2f6b1f; --comment: #57606a; "
    "--empty: #eef0f3; --partial: #7fb2d9; --full: #2b6ca3"
)
_DARK = (
    "color-scheme: dark; "
    "--back: var(--jp-layout-color0, var(--vscode-editor-background, #111)); "
    "--ink: var(--jp-content-font-color1, var(--vscode-editor-foreground, #e6e6e6)); --quiet: #9da7b3; "
    "--line: #3d444d; --shade: #1c2128; --mark: #35321a; --bad: #ff8a80; --bad-back: #3a1d1d; --good: #57c26e; "
    "--keyword: #d79bf0; --type: #79b8ff; --number: #e0b25c; --string: #8fd07a; --comment: #9aa4af; "
    "--empty: #23282f; --partial: #3a6a94; --full: #8cc4f5"
)
STYLE = f"""<style>
.flextrace {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{
body:not([data-jp-theme-light=true]):not(.vscode-light) .flextrace {{ {_DARK} }} }}
body[data-jp-theme-light=false] .flextrace, body.vscode-dark .flextrace,
body.vscode-high-contrast:not(.vscode-high-contrast-light) .flextrace {{ {_DARK} }}
.flextrace {{ color: var(--ink); background: var(--back); font: 13px/1.45 system-ui, sans-serif; padding: 2px 4px; }}
.flextrace pre, .flextrace code {{ font: 12px/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
color: inherit; background: none; }}
.flextrace pre {{ background: var(--shade); border: 1px solid var(--line); border-radius: 4px; margin: 4px 0;
padding: 6px 8px; overflow: auto; max-height: 40em; white-space: pre; }}
.flextrace .columns {{ display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: flex-start; }}
.flextrace .columns > div {{ flex: 2 1 16em; min-width: 0; }}
.flextrace .columns > .wide {{ flex: 3 1 24em; }}
.flextrace .columns > .narrow {{ flex: 0 0 auto; }}
.flextrace .head {{ font-size: 14px; }}
.flextrace .label, .flextrace .quiet {{ color: var(--quiet); }}
.flextrace .rows {{ border-collapse: collapse; margin: 6px 0; font-size: 12px; color: inherit; border: none; }}
.flextrace .rows tr {{ background: none !important; }}
.flextrace .rows th, .flextrace .rows td {{ text-align: left; padding: 2px 16px 2px 0; border: none;
border-bottom: 1px solid var(--line); color: inherit; background: none; vertical-align: top; }}
.flextrace .rows th {{ color: var(--quiet); font-weight: normal; }}
.flextrace .rows .number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.flextrace details {{ margin: 4px 0; }}
.flextrace details > details {{ margin-left: 14px; }}
.flextrace summary {{ cursor: pointer; }}
.flextrace .mark {{ background: var(--mark); display: block; margin: 0 -8px; padding: 0 8px; }}
.flextrace .good {{ color: var(--good); }}
.flextrace .bad {{ color: var(--bad); }}
.flextrace .finding, .flextrace pre.error {{ color: var(--bad); background: var(--bad-back);
border-color: var(--bad); }}
.flextrace .finding {{ border-left: 3px solid var(--bad); margin: 4px 0; padding: 4px 8px; }}
.flextrace .finding code {{ color: inherit !important; background: none !important; padding: 0; }}
.flextrace .k {{ color: var(--keyword); }}
.flextrace .t {{ color: var(--type); }}
.flextrace .n {{ color: var(--number); }}
.flextrace .s {{ color: var(--string); }}
.flextrace .c {{ color: var(--comment); }}
.flextrace figure {{ margin: 0; }}
.flextrace svg {{ display: block; margin: 4px 0; background: var(--empty); max-width: 100%; height: auto; }}
.flextrace .partial {{ fill: var(--partial); background: var(--partial); }}
.flextrace .full {{ fill: var(--full); background: var(--full); }}
.flextrace .empty {{ background: var(--empty); }}
.flextrace .swatch {{ display: inline-block; width: 0.8em; height: 0.8em; margin: 0 0.35em 0 0;
border: 1px solid var(--line); }}
</style>"""


def display(*parts: str) -> str:
    """The parts, which are HTML, as one display with its style."""
    return f'<div class="flextrace">{STYLE}{"".join(parts)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of texts, escaped here; the columns in `numbers` are set flush right."""
    right = frozenset(numbers)

    def line(tag: str, cells: Sequence[str]) -> str:
        made = (f"<{tag}{' class=number' if i in right else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table class=rows><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"
