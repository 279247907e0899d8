"""Functions from files, cells, exec and lambdas: their source is found, or the error says how to help."""

# ruff: noqa: E501, E702, E731, F841
from __future__ import annotations

import ast
import functools
import importlib
import linecache
import subprocess
import sys
import textwrap
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agreement import agrees, traced

from flextrace import tracer
from flextrace.tracer.source.find import source_of


def run_text(text: str, filename: str, register: bool = True, **names: Any) -> dict[str, Any]:
    """exec, with the text in linecache as notebooks do it."""
    text = textwrap.dedent(text)
    if register:
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    exec(compile(text, filename, "exec"), names)
    return names


def import_text(folder: Path, name: str, text: str) -> types.ModuleType:
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


# ---- lambdas -----------------------------------------------------------------------------------------------------

first, second = lambda b, h, q_idx, kv_idx: q_idx > kv_idx, lambda b, h, q_idx, kv_idx: q_idx < kv_idx
nested = lambda b, h, q_idx, kv_idx: (lambda x: x > kv_idx)(q_idx) and (lambda y: y != kv_idx)(h)
multiline = lambda b, h, q_idx, kv_idx: (
    q_idx
    >=
    kv_idx - 2
)  # fmt: skip
in_call = functools.partial(
    lambda width, b, h, q_idx, kv_idx: q_idx - kv_idx < width, 3)  # fmt: skip
table = {"a": lambda b, h, q_idx, kv_idx: h == 0, "b": lambda b, h, q_idx, kv_idx: h == 1, "c": lambda b, h, q_idx, kv_idx: b == 1}  # fmt: skip
with_default = lambda b, h, q_idx, kv_idx, f=(lambda b, h, q_idx, kv_idx: q_idx == 1): f(b, h, q_idx, kv_idx)
makers = [lambda w: lambda b, h, q_idx, kv_idx: q_idx < w, lambda w: lambda b, h, q_idx, kv_idx: q_idx > w]


@pytest.mark.parametrize(
    "function",
    [first, second, nested, multiline, in_call, *table.values(), with_default, makers[0](3), makers[1](3)],
)
def test_lambdas(function: Callable[..., Any]) -> None:
    agrees(function, "mask_mod")


def test_two_equal_lambdas_on_one_line() -> None:
    pair = (lambda b, h, q_idx, kv_idx: q_idx > 1, lambda b, h, q_idx, kv_idx: q_idx > 1)
    for function in pair:
        agrees(function)


def test_lambdas_that_differ_in_a_constant_or_name() -> None:
    x, y = 1, 2
    several = [lambda b, h, q_idx, kv_idx: q_idx > 1, lambda b, h, q_idx, kv_idx: q_idx > 2, lambda b, h, q_idx, kv_idx: q_idx > x, lambda b, h, q_idx, kv_idx: q_idx > y]  # fmt: skip
    assert len({traced(function).tobytes() for function in several}) == 2
    for function in several:
        agrees(function)


LOW, HIGH = 1, 2


def test_lambdas_that_differ_in_the_name_of_a_global() -> None:
    """Their instructions are the same."""
    pair = [lambda b, h, q_idx, kv_idx: q_idx > LOW, lambda b, h, q_idx, kv_idx: q_idx > HIGH]
    for function in pair:
        agrees(function, "mask_mod")


# ---- functions -----------------------------------------------------------------------------------------------------


def passes(function: Any = None, **options: Any) -> Any:
    return function if function is not None else lambda inner: inner


@passes
@passes(
    a=1,
    b=[
        2,
    ],
)
@passes(key=lambda x: x > 1)
def decorated_thrice(
    b,
    h,
    q_idx,
    kv_idx,
):  # fmt: skip
    """Text that looks dedented:
    def decorated_thrice(x):
    """
    return q_idx >= kv_idx  # with a comment
    # and one after the end


def summed(x, n):
    return x if n == 0 else summed(x + 1, n - 1) * summed.factor


summed.factor = 2.0


def recursive(score, b, h, q_idx, kv_idx):
    return summed(score, 2)


class Outer:
    class Inner:
        def recursive(self):
            __step = 1

            def __again(x, n):
                return x if n == 0 else __again(x + __step, n - 1)

            return lambda score, b, h, q_idx, kv_idx: __again(score, 2)

        def make(self):
            window = 3

            def mod(b, h, q_idx, kv_idx):
                return q_idx - kv_idx < window and self.__secret(h)

            return mod

        def __secret(self, h):
            return h > 0


if True:

    def indented(b, h, q_idx, kv_idx): return h == 2; unreachable = 1  # fmt: skip


def test_functions_in_a_file() -> None:
    agrees(decorated_thrice)
    agrees(Outer.Inner().make())
    agrees(indented)


def test_functions_that_name_themselves() -> None:
    agrees(recursive)
    agrees(Outer.Inner().recursive())


def test_functions_of_another_module(tmp_path: Path) -> None:
    module = import_text(
        tmp_path,
        "mods_of_the_user",
        """
        import math
        SCALE = 2
        def helper(x):
            return math.sqrt(x) * SCALE
        def mod(score, b, h, q_idx, kv_idx):
            return score + helper(h)
        """,
    )
    agrees(module.mod)

    def through_the_module(score, b, h, q_idx, kv_idx):
        return module.mod(score, b, h, q_idx, kv_idx) - module.helper(q_idx)

    agrees(through_the_module)


def test_functions_of_a_module_with_other_global_methods(tmp_path: Path) -> None:
    """The bytecode of `name.method()` depends on whether an import binds the name."""
    module = import_text(
        tmp_path,
        "other_globals",
        """
        try:
            import math as m
        except ImportError:
            m = None
        config = {"a": 1}
        def mod(score, b, h, q_idx, kv_idx):
            return score + config.get("a") + m.exp(h)
        """,
    )
    agrees(module.mod)


def test_a_notebook_cell() -> None:
    cell = """
    import math

    def helper(x):
        return x * 2

    def mod(score, b, h, q_idx, kv_idx):
        return helper(score) + math.exp(h)
    """
    names = run_text(cell, "/tmp/ipykernel_4242/1234567.py")
    agrees(names["mod"])
    again = run_text(cell.replace("* 2", "* 3"), "/tmp/ipykernel_4242/7654321.py")
    agrees(again["mod"])
    with pytest.raises(tracer.TraceError, match=r"7654322\.py"):
        third = run_text(cell.replace("* 2", "* open"), "/tmp/ipykernel_4242/7654322.py")
        tracer.trace(third["mod"], "score_mod")


def test_equal_functions_of_two_cells_are_told_apart_in_errors() -> None:
    text = "def mod(b, h, q_idx, kv_idx):\n    return undefined\n"
    for filename in ("<ipython-input-1-abc>", "<ipython-input-2-abc>"):
        with pytest.raises(tracer.TraceError, match=filename):
            tracer.trace(run_text(text, filename)["mod"], "mask_mod")


def test_exec_with_linecache() -> None:
    agrees(run_text("def mod(b, h, q_idx, kv_idx): return q_idx > kv_idx", "<made by exec>")["mod"])


def test_future_annotations_and_odd_signatures() -> None:
    names = run_text(
        """
        from __future__ import annotations
        def mod(score: Unknown, b, /, h, q_idx, kv_idx, *, scale: list[Unknown] = 2.0, **rest) -> Unknown:
            def inner(x: Unknown = score) -> Unknown:
                y: Unknown = x
                return y
            return inner() * scale
        """,
        "<odd>",
    )
    agrees(names["mod"])


def test_assert_statements_may_be_rewritten() -> None:
    """pytest compiles this very function from a changed tree."""

    def mod(score, b, h, q_idx, kv_idx):
        assert 2 > 1, f"checked {7}"
        return score

    agrees(mod)


# ---- magics of notebooks, modules in a zip ---------------------------------------------------------------------------

MAGIC_MOD = "def mod(score, b, h, q_idx, kv_idx):\n    return score * 0.5 + kv_idx\n"


def run_magic(magic: str, line: str, cell: str | None, compiled: str, filename: str, **names: Any) -> dict[str, Any]:
    """A cell with a magic as IPython has it: its lines hold a call with the text, which the magic compiles unnamed."""
    given = [magic, line] if cell is None else [magic, line, cell]
    call = f"get_ipython().run_{'line' if cell is None else 'cell'}_magic({', '.join(map(repr, given))})\n"
    name = f"<ipython-input-{len(linecache.cache)}-magic>"
    linecache.cache[name] = (len(call), None, [call], name)
    exec(compile(textwrap.dedent(compiled), filename, "exec"), names)
    return names


@pytest.mark.parametrize(
    ("magic", "line", "cell", "compiled", "filename"),
    [
        ("time", "", MAGIC_MOD, MAGIC_MOD, "<timed exec>"),
        ("time", "", "\n" + MAGIC_MOD, MAGIC_MOD, "<timed exec>"),  # IPython drops empty lines
        ("timeit", "-n 1 -r1", MAGIC_MOD, MAGIC_MOD, "<magic-timeit>"),
        ("timeit", "-n 1 mod = lambda score, b, h, q_idx, kv_idx: score + 3", "pass",
         "mod = lambda score, b, h, q_idx, kv_idx: score + 3", "<magic-timeit>"),
        ("timeit", "-n 1 -r 1 -q mod = lambda score, b, h, q_idx, kv_idx: score - 5", None,
         "mod = lambda score, b, h, q_idx, kv_idx: score - 5", "<magic-timeit>"),
        ("prun", "-q", MAGIC_MOD, "\n" + MAGIC_MOD, "<string>"),
        ("time", "mod = lambda score, b, h, q_idx, kv_idx: score / 2", None,
         "mod = lambda score, b, h, q_idx, kv_idx: score / 2", "<timed exec>"),
    ],
)  # fmt: skip
def test_functions_inside_magics_are_found(
    magic: str, line: str, cell: str | None, compiled: str, filename: str
) -> None:
    agrees(run_magic(magic, line, cell, compiled, filename)["mod"])


def test_a_timed_function_may_capture_what_was_assigned_beside_it() -> None:
    text = "width = 4\ndef mod(b, h, q_idx, kv_idx):\n    return q_idx - kv_idx < width\n"
    inside = "def inner():\n" + textwrap.indent(text, "    ") + "    return mod\n"
    agrees(run_magic("timeit", "-n1", text, inside, "<magic-timeit>")["inner"]())


def test_the_latest_text_of_a_magic_that_compiles_to_the_code_is_taken() -> None:
    for factor in (2, 3, 5):
        text = f"def scaled(score, b, h, q_idx, kv_idx):\n    return score * {factor}  # by {factor}\n"
        mod = run_magic("time", "", text, text, "<timed exec>")["scaled"]
        assert f"# by {factor}" in source_of(mod.__code__).text
        agrees(mod)


def test_a_text_of_a_magic_that_is_of_another_function_is_not_taken() -> None:
    text = "def other(score, b, h, q_idx, kv_idx):\n    return score * 2\n"
    mod = run_magic("time", "", text, text.replace("* 2", "* 7"), "<timed exec>")["other"]
    trace = tracer.trace(mod, "score_mod")
    assert (trace.reader, repr(trace.expr)) == ("bytecode", "score * 7.0")  # what runs


def test_an_error_in_a_magic_shows_its_line() -> None:
    text = "\n# a comment\ndef lost(score, b, h, q_idx, kv_idx):\n    return score * nowhere\n"
    mod = run_magic("prun", "", text, text, "<string>")["lost"]
    with pytest.raises(tracer.TraceError, match=r'File "<string>", line 4, in lost\n    return score \* nowhere'):
        tracer.trace(mod, "score_mod")


def test_functions_of_a_module_in_a_zip(tmp_path: Path) -> None:
    text = "def mod(score, b, h, q_idx, kv_idx):\n    return score + kv_idx\nmade = lambda n: lambda b, h, q, kv: q - kv < n\n"
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        packed.writestr("in_a_zip.py", text)
    sys.path.insert(0, str(tmp_path / "packed.zip"))
    try:
        module = importlib.import_module("in_a_zip")
    finally:
        sys.path.remove(str(tmp_path / "packed.zip"))
    assert module.__file__ == str(tmp_path / "packed.zip" / "in_a_zip.py")
    agrees(module.mod)
    agrees(module.made(3))
    assert source_of(module.mod.__code__).text == text.partition("made")[0]


# ---- no source -------------------------------------------------------------------------------------------------------


def test_exec_without_linecache() -> None:
    mod = run_text("def mod(b, h, q_idx, kv_idx): return q_idx > kv_idx", "<text without lines>", register=False)["mod"]
    with pytest.raises(tracer.NoSource):
        tracer.source_of(mod.__code__)
    assert tracer.trace(mod, "mask_mod").reader == "bytecode"
    agrees(mod)


def test_a_text_that_is_registered_later_is_read() -> None:
    text, filename = "def mod(b, h, q_idx, kv_idx):\n    return q_idx > kv_idx\n", "<registered>"
    mod = run_text(text, filename, register=False)["mod"]
    assert tracer.trace(mod, "mask_mod").reader == "bytecode"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    assert tracer.trace(mod, "mask_mod").reader == "source"
    agrees(mod)


@pytest.mark.parametrize(
    "edited",
    [
        "def mod(b, h, q_idx, kv_idx):\n    return q_idx > 4\n",  # another constant
        "def mod(b, h, q_idx, kv_idx):\n    return q_idx < 3\n",  # another operator
        "def mod(b, h, q_idx, kv_idx):\n    return h > 3\n",  # another name
        "def mod(b, h, q_idx, kv_idx):\n    return q_idx >\n",  # broken
        "",
    ],
)
def test_a_file_edited_after_the_import(tmp_path: Path, edited: str) -> None:
    """What runs is the code that was imported, so that is what is read."""
    name = f"edited_{abs(hash(edited))}"
    module = import_text(tmp_path, name, "def mod(b, h, q_idx, kv_idx):\n    return q_idx > 3\n")
    (tmp_path / f"{name}.py").write_text(edited)
    trace = tracer.trace(module.mod, "mask_mod")
    assert (trace.reader, repr(trace.expr)) == ("bytecode", "3 < q_idx")


def test_a_function_that_an_edit_moved_is_found(tmp_path: Path) -> None:
    text = "def mod(b, h, q_idx, kv_idx):\n    assert h > 3\n    return q_idx.x\n"
    module = import_text(tmp_path, "moved_by_an_edit", text)
    (tmp_path / "moved_by_an_edit.py").write_text("x = 1\n" + text.replace("h > 3", "True"))
    with pytest.raises(tracer.NoSource):
        tracer.source_of(module.mod.__code__)  # another function of that name
    (tmp_path / "moved_by_an_edit.py").write_text("x = 1\n\n" + text)
    with pytest.raises(tracer.TraceError, match=r"line 4, in mod\n    assert h > 3\n"):
        tracer.trace(module.mod, "mask_mod")


def test_functions_that_are_compiled_by_themselves_are_found_in_their_file(tmp_path: Path) -> None:
    """As IPython's autoreload does with those that an edit changed: every one starts at line 1."""
    text = "import math\n\n\ndef mod(score, b, h, q_idx, kv_idx):\n    return score + math.exp(h) * 2\n"
    module = import_text(tmp_path, "compiled_alone", text)
    edited = text.replace("* 2", "* 3")
    (tmp_path / "compiled_alone.py").write_text(edited)
    exec(compile(edited[edited.index("def") :], module.__file__ or "", "exec"), vars(module))
    agrees(module.mod)


def test_an_error_shows_the_line_that_was_read(tmp_path: Path) -> None:
    module = import_text(tmp_path, "edited_after_the_trace", "def mod(b, h, q_idx, kv_idx):\n    return q_idx.x\n")
    for text in (None, "def mod(b, h, q_idx, kv_idx):\n    return q_idx.y\n"):
        if text:
            (tmp_path / "edited_after_the_trace.py").write_text(text)
            linecache.checkcache()
        with pytest.raises(tracer.TraceError, match=r"return q_idx\.x\n"):
            tracer.trace(module.mod, "mask_mod")


def test_functions_without_python_source() -> None:
    with pytest.raises(tracer.TraceError, match="max is not a function written in Python"):
        tracer.trace(max, "mask_mod")


@pytest.mark.parametrize("decorator", ["", "@lambda function: function\n"], ids=["plain", "decorated"])
def test_finding_a_function_in_a_long_file_reads_its_block_alone(
    decorator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = "\n".join(f"def f{i}(x):\n    y = x * {i}\n    return [y for _ in range(3)]\n" for i in range(2000))
    mod = f"{decorator}def mod(score, b, h, q_idx, kv_idx):\n    return math.exp(score)\n"
    module = import_text(tmp_path, f"a_long_file{len(decorator)}", f"import math\n{filler}\n{mod}")
    linecache.getlines(module.__file__)
    parsed: list[str] = []
    parse = ast.parse
    monkeypatch.setattr(
        ast, "parse", lambda text, *args, **kwargs: [parsed.append(text), parse(text, *args, **kwargs)][1]
    )
    tracer.trace(module.mod, "score_mod")
    assert parsed and max(map(len, parsed)) < 200


def test_exec_inside_a_program_of_the_command_line() -> None:
    """From Python 3.13 on, linecache holds the program of `python -c` under the name that exec gives its text too."""
    program = (
        "from flextrace import tracer\n"
        "names = {}\n"
        "exec('def mod(b, h, q_idx, kv_idx):\\n    return q_idx > kv_idx', names)\n"
        "print(tracer.trace(names['mod'], 'mask_mod').reader)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "bytecode\n", done.stderr
