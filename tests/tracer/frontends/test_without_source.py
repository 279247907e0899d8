"""Functions that no file, cell or zip has the text of: README's example works wherever Python runs it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

README = Path(__file__).parents[3] / "README.md"
EXAMPLE = re.search(r"```python\n(.*?)```", README.read_text(), re.S).group(1)  # type: ignore[union-attr]
SHAPE = "(1, 4, 1024, 64)"
SHOWN = "print('got', out.shape, alibi.trace().reader, causal.trace().reader)\n"
WANTED = f"got {SHAPE} bytecode bytecode"


def python(*args: str, text: str | None = None, folder: Path | None = None) -> str:
    ended = subprocess.run(
        [sys.executable, *args], input=text, capture_output=True, text=True, cwd=folder, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def command(folder: Path) -> str:
    return python("-c", EXAMPLE + SHOWN)


def script_on_standard_input(folder: Path) -> str:
    return python("-", text=EXAMPLE + SHOWN)


def exec_without_a_file(folder: Path) -> str:
    script = folder / "runs.py"
    script.write_text(f"exec({EXAMPLE + SHOWN!r})")
    return python(str(script))


def compiled_under_a_name_that_is_no_file(folder: Path) -> str:
    script = folder / "runs.py"
    script.write_text(f"exec(compile({EXAMPLE + SHOWN!r}, '<made by a library>', 'exec'))")
    return python(str(script))


def compiled(folder: Path, name: str = "example") -> Path:
    """A module as a .pyc without its source."""
    (folder / f"{name}.py").write_text(EXAMPLE + SHOWN)
    python("-c", f"import py_compile; py_compile.compile('{name}.py', '{name}.pyc')", folder=folder)
    (folder / f"{name}.py").unlink()
    return folder / f"{name}.pyc"


def module_without_source(folder: Path) -> str:
    compiled(folder)
    return python("-c", "import example", folder=folder)


def zip_of_compiled_modules(folder: Path) -> str:
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        archive.write(compiled(folder), "example.pyc")
    (folder / "example.pyc").unlink()
    return python("-c", "import sys; sys.path.insert(0, 'packed.zip'); import example", folder=folder)


def module_edited_after_its_import(folder: Path) -> str:
    (folder / "edited.py").write_text(EXAMPLE.rsplit("out =", 1)[0])
    script = """
    import edited, pathlib
    pathlib.Path('edited.py').write_text('# nothing is left')
    globals().update(vars(edited))
    out = flex.flex_attention(q, k, v, score_mod=alibi, block_mask=causal)
    """
    (folder / "runs.py").write_text(textwrap.dedent(script) + SHOWN)
    return python("runs.py", folder=folder)


def functions_made_of_code(folder: Path) -> str:
    remade = """
    import types
    def again(mod):
        function = mod.__wrapped__
        code = function.__code__.replace(co_filename="<none>")
        return type(mod)(types.FunctionType(code, globals(), function.__name__))
    alibi, causal = again(alibi), again(causal)
    out = flex.flex_attention(q, k, v, score_mod=alibi, block_mask=causal)
    """
    (folder / "runs.py").write_text(EXAMPLE + textwrap.dedent(remade) + SHOWN)
    return python("runs.py", folder=folder)


def methods_made_by_exec_as_dataclasses_do(folder: Path) -> str:
    made = """
    class Alibi:
        slopes = slopes
    names = {}
    exec("def __call__(self, score, b, h, q_idx, kv_idx): return score + self.slopes[h] * (kv_idx - q_idx)", names)
    Alibi.__call__ = names["__call__"]
    exec("def causal(b, h, q_idx, kv_idx): return q_idx >= kv_idx", globals())
    alibi, causal = flex.score_mod(Alibi()), flex.mask_mod(causal)
    out = flex.flex_attention(q, k, v, score_mod=alibi, block_mask=causal)
    """
    (folder / "runs.py").write_text(EXAMPLE + textwrap.dedent(made) + SHOWN)
    return python("runs.py", folder=folder)


def wrapped_by_a_package_without_source(folder: Path) -> str:
    (folder / "logs.py").write_text(
        "import functools\n"
        "def logged(function):\n"
        "    @functools.wraps(function)\n"
        "    def inner(*args, **kwargs):\n"
        "        return function(*args, **kwargs)\n"
        "    return inner\n"
    )
    python("-c", "import py_compile; py_compile.compile('logs.py', 'logs.pyc')", folder=folder)
    (folder / "logs.py").unlink()
    text = EXAMPLE.replace("@flex.score_mod", "@flex.score_mod\n@logs.logged").replace(
        "@flex.mask_mod", "@flex.mask_mod\n@logs.logged"
    )
    (folder / "runs.py").write_text("import logs\n" + text + SHOWN)
    return python("runs.py", folder=folder)


def prompt(folder: Path) -> str:
    """Python's own interactive prompt, typed into a terminal."""
    lines = re.sub(r"\n\n+", "\n", EXAMPLE).replace("\n@", "\n\n@") + "\n\n" + SHOWN + "exit()\n"
    lines = re.sub(r"(?m)^(    +return.*)$", r"\1\n", lines)
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHON_BASIC_REPL": "1", "TERM": "dumb"}
    process = subprocess.Popen([sys.executable, "-q"], stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    os.write(master, lines.encode())
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # the terminal is closed at the other end
        pass
    process.wait(timeout=120)
    os.close(master)
    return shown.decode(errors="replace")


def notebook_cell_without_history(folder: Path) -> str:
    script = f"""
    from IPython.core.interactiveshell import InteractiveShell
    import linecache
    shell = InteractiveShell.instance(history_length=0)
    shell.history_manager.enabled = False
    shell.compile.cache = lambda code, number=0, raw_code=None: "<a cell that nobody keeps>"
    result = shell.run_cell({EXAMPLE + SHOWN!r}, store_history=False)
    result.raise_error()
    """
    (folder / "runs.py").write_text(textwrap.dedent(script))
    return python("runs.py", folder=folder)


WAYS: tuple[Callable[[Path], str], ...] = (
    command,
    script_on_standard_input,
    exec_without_a_file,
    compiled_under_a_name_that_is_no_file,
    module_without_source,
    zip_of_compiled_modules,
    module_edited_after_its_import,
    functions_made_of_code,
    methods_made_by_exec_as_dataclasses_do,
    wrapped_by_a_package_without_source,
    prompt,
    notebook_cell_without_history,
)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_example_of_the_readme_works(way: Callable[[Path], str], tmp_path: Path) -> None:
    said = way(tmp_path)
    wanted = WANTED
    if sys.version_info >= (3, 13) and way in (command, prompt):  # this Python keeps what is typed
        wanted = f"got {SHAPE}"
    assert wanted in said
