"""CUDA text, its entry included -> C++ text for the apparatus: PTX as calls of instructions.h, shared memory as storage
that the runtime watches, an entry that gives a lane its arguments."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from flextrace.kernels.simulator.build import compiler

FOLDER = Path(__file__).parent
_ASM = re.compile(r"\basm\b\s*(?:volatile\b)?\s*\(")
_SHARED = re.compile(
    r"(extern\s+)?__shared__\s+(?:(?:__align__|alignas)\((\d+)\)\s+)?([\w:<>, ]+?)\s+(\w+)\s*((?:\[[^\]]*\])*)\s*;"
)
_ENTRY = re.compile(
    r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s+)?(?!__launch)(\w+)\s*\(([^{]*?)\)\s*\{'
)
# How an operand is passed, by its constraint.
_IN = {"f": "float", "d": "double", "r": "unsigned", "l": "unsigned long", "h": "unsigned short", "n": "int"}


def to_host(text: str) -> str:
    """The C++ text that runs the kernel of a CUDA text on the host.

    Raises:
        ValueError: it has no entry, or PTX that this does not read.
    """
    body, given, words = _shared(_instructions(_expanded(text))), list[str](), 0
    scalars = sum("*" not in kind for kind, _ in parameters_of(text))
    for kind, _ in parameters_of(text):
        if "*" in kind:
            place = 1 + scalars + 2 * len(given)  # of a word that names its buffer, and of one for bytes from there
            given.append(f"({kind})((char*)buffers[words[{place}]].address + words[{place + 1}])")
        else:
            words += 1
            given.append(f"({kind})words[{words}]")
    count = len(given) - words
    return "\n".join(
        [
            '#include "device.h"',
            *prototypes(),
            body,
            '#line 1 "entry of the apparatus"',
            'extern "C" void sim_run_lane(const sim_lane_position*, const sim_buffer* buffers) {',
            f"  const int* words = (const int*)buffers[{count}].host;",
            f"  cuda_begin(words[0]);\n  {name_of(text)}({', '.join(given)});",
            "}\n",
        ]
    )


def _expanded(text: str) -> str:
    """The text with its macros and #if done: PTX may come out of them."""
    command = [compiler().path, "-E", "-x", "c++", "-D__CUDACC__", "-D__CUDA_ARCH__=900", "-w", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr)
    return done.stdout


def _entry(text: str) -> re.Match[str]:
    entry = _ENTRY.search(text)
    if entry is None:
        raise ValueError('the text has no entry: extern "C" __global__ void name(...) {')
    return entry


def name_of(text: str) -> str:
    """The kernel's name."""
    return _entry(text)[1]


def parameters_of(text: str) -> list[tuple[str, str]]:
    """Type and name of each of the kernel's parameters."""
    parts = [
        " ".join(re.sub(r"\b(__restrict__|__grid_constant__)\b", "", part).split())
        for part in _entry(text)[2].split(",")
    ]
    return [(part[: -len(name)].strip(), name) for part in parts for name in re.findall(r"\w+$", part)]


def prototypes() -> list[str]:
    """Declarations of all instructions that instructions.h defines."""
    text = "".join((FOLDER / name).read_text(encoding="ascii") for name in ("instructions.h", "asynchronous.h"))
    found = [f"void ptx_{name}({given});" for name, given in re.findall(r"^PTX\((\w+), ([^)]*)\) \{", text, re.M)]
    for name, element in re.findall(r"^PTX_MMA\((\w+), (\w+),", text, re.M):
        sums, words = f"{element}&, " * 4, "uint32_t, " * 6
        found.append(f"void ptx_{name}({sums}{words}{', '.join([element] * 4)});")
    return found


def instructions_of(text: str) -> set[str]:
    """The names of the PTX instructions in a text."""
    statements = _statements(_expanded(text))
    return {name.split()[-1] for _, _, template, _ in statements for name, _ in _parsed(template) if name != "_reg"}


def _statements(text: str) -> Iterator[tuple[int, int, str, list[tuple[str, str]]]]:
    """Each asm statement: where it begins and ends, its template, and constraint and expression of each operand."""
    for found in _ASM.finditer(text):
        end, parts = _parts(text, found.end())
        template = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', parts[0])).replace("\\n", " ").replace("\\t", " ")
        operands = [(constraint, expression) for part in parts[1:3] for constraint, expression in _operands(part)]
        yield found.start(), end, template, operands


def _parts(text: str, start: int) -> tuple[int, list[str]]:
    """From behind the opening parenthesis: the end behind `);`, and what stands between colons."""
    depth, at, begin, parts = 1, start, start, []
    while True:
        letter = text[at]
        if letter == '"':
            at = re.compile(r'"(?:[^"\\]|\\.)*"').match(text, at).end()  # type: ignore[union-attr]
            continue
        depth += (letter in "([") - (letter in ")]")
        if (letter == ":" and depth == 1) or depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
        at += 1
        if depth == 0:
            return text.index(";", at) + 1, parts


def _operands(part: str) -> Iterator[tuple[str, str]]:
    at = 0
    while (found := re.compile(r'[\s,]*"([=+&\w]+)"\s*\(').match(part, at)) is not None:
        end, inner = _closing(part, found.end())
        yield found[1], inner
        at = end


def _closing(text: str, start: int) -> tuple[int, str]:
    depth, at = 1, start
    while depth:
        depth += (text[at] == "(") - (text[at] == ")")
        at += 1
    return at, text[start : at - 1]


def _parsed(template: str) -> Iterator[tuple[str, list[str]]]:
    """The instructions of a template: name, operands. Registers are declared by `.reg`, an instruction too."""
    for statement in template.split(";"):
        words = statement.strip().removeprefix("{").strip()
        if words in ("", "}"):
            continue
        guard, words = re.match(r"(@!?\w+\s+)?(.*)", words, re.S).groups()  # type: ignore[union-attr]
        name, _, rest = words.partition(" ")
        operands = re.findall(r"%\d+|-?\b0x[0-9a-fA-F]+\b|-?\b\d+\b|%?\b[A-Za-z_]\w*\b", rest)
        yield (guard or "") + re.sub(r"\W", "_", name), [word for word in operands if word != "_"]


def _instructions(text: str) -> str:
    pieces, done = [], 0
    for start, end, template, operands in _statements(text):
        calls = [_call(name, given, operands) for name, given in _parsed(template)]
        lines = "\n" * text.count("\n", start, end)
        pieces += [text[done:start], "{ " + " ".join(calls) + " }" + lines]
        done = end
    return "".join([*pieces, text[done:]])


def _call(name: str, given: list[str], operands: list[tuple[str, str]]) -> str:
    if name == "_reg":
        kinds = {"pred": "bool", "f32": "float", "b64": "unsigned long", "u64": "unsigned long"}
        return "".join(f"{kinds.get(given[0], 'unsigned')} ptx_{register}{{}}; " for register in given[1:])
    guard, _, name = name.rpartition(" ")
    if name.startswith("wgmma_mma_async"):
        given_ = ", ".join(_argument(word, operands) for word in given)
        return f'{{ CudaOperand all[] = {{{given_}}}; cuda_wgmma("{name}", all, {len(given)}); }}'
    condition = f"if ({'!' if '!' in guard else ''}ptx_{guard.strip(' @!')}) " if guard else ""
    return f"{condition}ptx_{name}({', '.join(_argument(word, operands) for word in given)});"


def _argument(word: str, operands: list[tuple[str, str]]) -> str:
    if not word.startswith("%"):
        return word if re.match(r"-?\d", word) else f"ptx_{word}"
    if not word[1:].isdigit():
        raise ValueError(f"PTX names a special register {word}; read it by CUDA's own words")
    constraint, expression = operands[int(word[1:])]
    kind = _IN[constraint[-1]]
    return f"({kind}&)({expression})" if constraint[0] in "=+" else f"({kind})({expression})"


def _shared(text: str) -> str:
    sites = iter(range(1, 1 << 16))

    def declared(found: re.Match[str]) -> str:
        outside, align, kind, name, sizes = found.groups()
        if outside:
            return f"{kind}* {name} = ({kind}*)cuda_dynamic_shared();"
        whole = f"{kind}{sizes}"
        storage = f'sim_threadgroup({next(sites)}, sizeof({whole}), {align or f"alignof({kind})"}, "{name}")'
        return f"{kind} (&{name}){sizes} = *({kind} (*){sizes}){storage};"

    return _SHARED.sub(declared, text)
