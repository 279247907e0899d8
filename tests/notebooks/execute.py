"""notebooks/*.ipynb -> the same, run from the top, with outputs that read the same on every machine.

    python tests/notebooks/execute.py                       all of them
    python tests/notebooks/execute.py 1_first_mod 3         those whose names begin so

A notebook runs in a folder of its own, with an empty kernel cache, by this Python's own kernel.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from ipykernel.compiler import get_file_name
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

FOLDER = Path(__file__).parents[2] / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_FILE = re.compile(r'(?:File )?(["\']?)[^\s"\']*ipykernel_\d+[/\\](\d+\.py)\1')
SETTINGS = ("FLEXTRACE_BACKEND", "MPLBACKEND", "PYTHONSTARTUP")  # that a run does without
SECONDS = 300  # for one cell


def notebooks(*names: str) -> list[Path]:
    """The notebooks whose names begin so, all without names.

    Raises:
        SystemExit: a name is of none.
    """
    found = sorted(FOLDER.glob("*.ipynb"))
    for name in names:
        if not any(path.stem.startswith(name) for path in found):
            raise SystemExit(f"no notebook is called {name}; there are {', '.join(path.stem for path in found)}")
    return [path for path in found if not names or path.stem.startswith(names)]


def run(notebook: Any, folder: Path) -> Any:
    """The notebook with new outputs, normalised. It runs in `folder`, where it may write.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the message shows the cell and its traceback.
    """
    ran = nbformat.from_dict({**notebook, "metadata": METADATA})
    home = folder / "run"
    home.mkdir()
    own = {"FLEXTRACE_CACHE_DIR": str(folder / "cache"), "IPYTHONDIR": str(folder / "ipython")}
    env = {name: value for name, value in os.environ.items() if name not in SETTINGS} | own
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    resources = {"metadata": {"path": str(home)}}
    client = nbclient.NotebookClient(ran, km=manager, timeout=SECONDS, record_timing=False, resources=resources)
    client.execute(env=env)
    return normalised(ran)


def normalised(notebook: Any) -> Any:
    """Nothing in it tells when, how often and where it ran: timing, ids, counts, the temporary files of cells."""
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cell_of_file = {Path(get_file_name(cell.source)).name: f"Cell In[{i}]" for i, cell in enumerate(codes, 1)}

    def named(text: str) -> str:
        return CELL_FILE.sub(lambda found: cell_of_file.get(found[2], found[0]), text)

    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
    for count, cell in enumerate(codes, 1):
        cell.execution_count = count
        cell.outputs = _joined(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            if output.output_type == "stream":
                output.text = named(output.text)
            for kind, data in output.get("data", {}).items():
                if isinstance(data, str) and kind != "image/png":
                    output.data[kind] = named(data)
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """What a cell printed in several pieces, as one."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def main(names: list[str]) -> None:
    for path in notebooks(*names):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            ran = run(nbformat.read(path, as_version=4), Path(folder))
        nbformat.validate(ran)
        path.write_text(nbformat.writes(ran) + "\n", encoding="utf-8")
        print(f"{path.stem}: {time.perf_counter() - start:.1f} s, {path.stat().st_size / 1000:,.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
