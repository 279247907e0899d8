"""The readers of functions under every Python that this machine has: `make test-pythons`.

Bytecode is another with every version of CPython, so the tests of the front ends run under all of 3.10 to 3.14 that are
found: on the path, under pyenv, or by uv. Each gets an environment of its own beside that of `make test`, which runs
them under its own version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = tuple(f"3.{minor}" for minor in range(10, 15))
OWN = f"3.{sys.version_info.minor}"
TESTS = ("frontends", "semantics", "test_trace.py", "expr/test_expr.py")


def found(version: str) -> Path | None:
    """The interpreter of a version, if it runs."""
    places = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places += sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))
    if uv := shutil.which("uv"):
        asked = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
        places.append(asked.stdout.strip() or None)
    for place in filter(None, places):
        said = subprocess.run(
            [place, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if said.stdout.strip() == version:
            return Path(place)
    return None


def environment(version: str, interpreter: Path, extra: str) -> Path:
    """The Python of an environment that has flextrace and what the tests need."""
    folder = ROOT / f".venv-{version}"
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists() or done.stat().st_mtime < (ROOT / "pyproject.toml").stat().st_mtime:
        subprocess.run([interpreter, "-m", "venv", "--clear", folder], check=True)
        extra = extra.strip(",")
        wanted = [
            "-e",
            f".[{extra}]" if extra else ".",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ipython",
        ]
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True, cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        done.touch()
    return python


def main(extra: str) -> int:
    found_here = {version: place for version in VERSIONS if version != OWN and (place := found(version)) is not None}
    with ThreadPoolExecutor() as together:
        pythons = list(together.map(lambda item: environment(*item, extra), found_here.items()))
    failed = []
    for version, python in zip(found_here, pythons, strict=True):
        print(f"Python {version}", flush=True)
        tests = [python, "-m", "pytest", "-n", "2", "-m", "not long", "-p", "no:cacheprovider"]
        if subprocess.run([*tests, *(f"tests/tracer/{name}" for name in TESTS)], cwd=ROOT, check=False).returncode:
            failed.append(version)
    missing = [version for version in VERSIONS if version not in (OWN, *found_here)]
    print(
        f"the front ends ran under Python {', '.join(found_here) or 'none'}; under {OWN} `make test` runs them", end=""
    )
    print(f"; not found: {', '.join(missing)}" * bool(missing))
    if failed:
        print(f"failed under {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
