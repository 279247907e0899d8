"""Metal text -> C++ text: includes inlined, threadgroup memory made shared storage, the kernel's parameters read.

The rest of Metal Shading Language is C++ once `metal_stdlib.h` is included. Threadgroup memory is not: a declaration
left as it is would be private to each lane, silently. So every `threadgroup` must be understood here, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class RewriteError(ValueError):
    """Metal text that the simulator does not understand; the message names the place and the remedy."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel function: a buffer (by its index) or a position (by its attribute)."""

    name: str
    attribute: str  # "buffer" or, say, "thread_position_in_grid"
    index: int  # of the buffer
    reference: bool  # declared with &
    constant: bool  # in the constant address space


_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>).*$', re.MULTILINE)
_METAL_HEADERS = re.compile(r"metal_\w+|metal_stdlib")
_BLANKED = re.compile(r'(?m:^[ \t]*#[ \t]*line\b[^\n]*)|//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
_LINE_MARK = re.compile(r'^[ \t]*#[ \t]*line[ \t]+(\d+)(?:[ \t]+"([^"]*)")?', re.MULTILINE)
_WORD = re.compile(r"\bthreadgroup\b")
_KERNEL = re.compile(r"(?:\[\[\s*kernel\b[^\]]*\]\]|\bkernel\b)\s+void\s+(\w+)\s*\(")
_CONSTANT = re.compile(r"\bconstant\s+(\w+)\s+(\w+)\s*\[\[\s*function_constant\(\s*\d+\s*\)\s*\]\]\s*;")


def inline_includes(text: str, folder: Path | None, replaced: Mapping[str, str], label: str) -> str:
    """`text` with every quoted include replaced by its file under `folder`, once, between #line marks.

    `replaced` gives the text of some files by name. Metal's own headers become nothing: the stand-in comes first.

    Raises:
        RewriteError: an include that is neither.
    """
    done: set[str] = set()

    def expand(content: str, name: str) -> str:
        def replace(found: re.Match[str]) -> str:
            quoted, angled = found[1], found[2]
            after = _line_of(content, found.end(), name)
            if angled is not None:
                if _METAL_HEADERS.fullmatch(angled):
                    return ""
                raise RewriteError(f"{after}: <{angled}> is no header of Metal; the simulator has metal_stdlib only")
            if quoted in done:
                return ""
            done.add(quoted)
            if quoted in replaced:
                inner = replaced[quoted]
            elif folder is not None and (folder / quoted).is_file():
                inner = (folder / quoted).read_text(encoding="utf-8")
            else:
                raise RewriteError(f'{after}: "{quoted}" cannot be included; a kernel\'s text must be complete')
            line = int(after.rpartition(":")[2])
            return f'#line 1 "{quoted}"\n{expand(inner, quoted)}\n#line {line + 1} "{after.rpartition(":")[0]}"'

        return _INCLUDE.sub(replace, content)

    return expand(text, label)


def set_constants(text: str, values: Mapping[str, bool | int]) -> str:
    """Give every function constant of `text` its value. Raises RewriteError for one without."""

    def replace(found: re.Match[str]) -> str:
        kind, name = found[1], found[2]
        if name not in values:
            raise RewriteError(f"the function constant {name!r} has no value: mx.fast.metal_kernel cannot set one")
        return f"static constexpr {kind} {name} = {str(values[name]).lower()};"

    return _CONSTANT.sub(replace, text)


def rewrite_threadgroup(text: str) -> str:
    """`text` with each declaration of threadgroup memory made shared storage and each qualifier taken away.

    >>> rewrite_threadgroup("kernel void k() { threadgroup float tile[8][9]; }")
    'kernel void k() { SIM_THREADGROUP(0, tile, float[8][9]); }'
    >>> rewrite_threadgroup("void f(threadgroup float* tile);")
    'void f( float* tile);'

    Raises:
        RewriteError: a `threadgroup` that is neither.
    """
    code = blank(text)
    bodies = kernel_bodies(code)
    pieces: list[str] = []
    done = 0
    site = 0
    for found in _WORD.finditer(code):
        start, end = found.span()
        if start < done:
            continue
        before, after = code[:start].rstrip(), code[end:]
        if before.endswith("[["):
            continue  # an attribute of the same name
        if _in_directive(code, start):
            raise _refusal(text, start, "in a preprocessor directive; write it where it is used")
        pieces.append(text[done:start])
        last = before[-1:]
        argument = _in_parentheses(code, start)
        if _is_pointer(after) or _is_method_qualifier(before, after):
            done = end
            continue
        if argument and re.match(r"\s*(?:const\s+)?[\w:]+(?:<[^<>]*>)?\s+\w+\s*\[", after):
            done = end  # an array parameter, which is a pointer
            continue
        statement_end = after.find(";")
        declaration = after[:statement_end].strip() if statement_end >= 0 else ""
        parts = _declaration(declaration)
        if parts is None or last not in (";", "{", "}", ")"):
            what = declaration.split("\n")[0][:60]
            raise _refusal(
                text, start, f"'threadgroup {what}': declare one variable a line, as `threadgroup T name[N];`"
            )
        if not any(low < start < high for low, high in bodies):
            raise _refusal(text, start, "threadgroup memory declared outside a kernel function, which Metal refuses")
        kind, name, dimensions = parts
        lines = "\n" * after[:statement_end].count("\n")
        pieces.append(f"SIM_THREADGROUP({site}, {name}, {kind}{dimensions})" + lines)
        site += 1
        done = end + statement_end
    pieces.append(text[done:])
    return "".join(pieces)


def _is_method_qualifier(before: str, after: str) -> bool:
    """Whether `threadgroup` stands behind a method's parameters, for its `this`."""
    if not (before.endswith(")") or re.search(r"\b(?:const|noexcept)$", before)):
        return False
    return re.match(r"\s*(?:\{|:|;|=|const\b|noexcept\b)", after) is not None


def _is_pointer(after: str) -> bool:
    """Whether the type behind `threadgroup` is that of a pointer or a reference."""
    found = re.match(r"\s*(?:(?:const|volatile|typename)\s+)*([A-Za-z_][\w:]*)?", after)
    assert found is not None
    rest = after[found.end() :].lstrip()
    if rest.startswith("<"):
        depth = 0
        for at, letter in enumerate(rest):
            depth += (letter == "<") - (letter == ">")
            if depth == 0:
                rest = rest[at + 1 :].lstrip()
                break
    rest = re.sub(r"^(?:::\w+\s*|const\b\s*)*", "", rest)
    return re.match(r"\(?\s*[*&]", rest) is not None


def _declaration(text: str) -> tuple[str, str, str] | None:
    """`T name[N][M]` -> its parts; None for anything else (initialised, several names, a pointer)."""
    found = re.fullmatch(r"(.*?[\w>])\s+(\w+)\s*((?:\[[^\[\]]*\]\s*)*)", text, re.DOTALL)
    if found is None:
        return None
    kind, name, dimensions = " ".join(found[1].split()), found[2], " ".join(found[3].split())
    if re.search(r"[*&=(){};\[\]\"]", kind) or "," in re.sub(r"<.*>", "", kind):
        return None
    return kind, name, dimensions


def blank(text: str) -> str:
    """`text` with comments and strings as spaces, so that positions stay."""

    def spaces(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    return _BLANKED.sub(spaces, text)


def kernel_bodies(code: str) -> list[tuple[int, int]]:
    """Where the bodies of kernel functions lie in blanked text."""
    bodies = []
    for found in _KERNEL.finditer(code):
        end = closing(code, found.end() - 1)
        brace = code.find("{", end)
        if brace >= 0 and ";" not in code[end:brace]:
            bodies.append((brace, closing(code, brace)))
    return bodies


def closing(code: str, at: int) -> int:
    """The position of the bracket that closes the one at `at`."""
    pairs = {"(": ")", "{": "}", "[": "]"}
    opening, wanted, depth = code[at], pairs[code[at]], 0
    for position in range(at, len(code)):
        depth += (code[position] == opening) - (code[position] == wanted)
        if depth == 0:
            return position
    raise RewriteError(f"a {opening!r} is never closed in the kernel's text")


def read_parameters(text: str, name: str) -> list[Parameter]:
    """The parameters of the kernel function `name`.

    Raises:
        RewriteError: no such kernel, or a parameter with no attribute.
    """
    code = blank(text)
    found = next((each for each in _KERNEL.finditer(code) if each[1] == name), None)
    if found is None:
        raise RewriteError(f"the text has no kernel function {name!r}")
    inside = code[found.end() : closing(code, found.end() - 1)]
    parameters = []
    for part in split(inside):
        attribute = re.search(r"\[\[\s*(\w+)\s*(?:\(\s*(\d+)\s*\))?.*\]\]", part, re.DOTALL)
        declared = part[: part.find("[[")].strip()
        words = re.findall(r"\w+", declared)
        if attribute is None or not words:
            raise RewriteError(
                f"the parameter {part.strip()!r} of kernel {name!r} has no attribute such as [[buffer(0)]]"
            )
        parameters.append(_parameter(words, attribute[1], attribute[2], "&" in declared))
    return parameters


def _parameter(words: Sequence[str], attribute: str, index: str | None, reference: bool) -> Parameter:
    return Parameter(words[-1], attribute, int(index or 0), reference, "constant" in words)


def split(text: str) -> Sequence[str]:
    """Split at commas that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]] if text[start:].strip() else parts


def _in_parentheses(code: str, at: int) -> bool:
    depth = 0
    for position in range(at - 1, -1, -1):
        letter = code[position]
        if letter in "{};" and depth == 0:
            return False
        depth += (letter == ")") - (letter == "(")
        if depth < 0:
            return True
    return False


def _in_directive(code: str, at: int) -> bool:
    start = code.rfind("\n", 0, at) + 1
    while start > 1 and code[start - 2] == "\\":
        start = code.rfind("\n", 0, start - 1) + 1
    return code[start:at].lstrip().startswith("#")


def _line_of(text: str, at: int, label: str) -> str:
    """file:line of a position, by the #line marks before it."""
    name, base, origin = label, 1, 0
    for mark in _LINE_MARK.finditer(text, 0, at):
        name, base, origin = mark[2] or name, int(mark[1]), mark.end() + 1
    return f"{name}:{base + text.count(chr(10), origin, at)}"


def _refusal(text: str, at: int, reason: str) -> RewriteError:
    return RewriteError(f"{_line_of(text, at, 'kernel')}: threadgroup {reason}")
