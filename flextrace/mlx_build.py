"""MLX is there and loads, or what to install: imported before all that needs MLX.

`mlx` alone is no whole MLX on Linux: its library comes in `mlx-cpu`, `mlx-cuda-12` or `mlx-cuda-13`. All three install
the same file, so no requirement of flextrace can choose one for a machine that has, or will have, another.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path

CANNOT = 2  # the exit code of a command that cannot run as asked
BUILDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
CHOICE = (
    "pip install 'flextrace[cpu]', or with an NVIDIA GPU pip install 'flextrace[cuda13]' (flextrace[cuda12] for a "
    "driver of CUDA 12)"
)


def remedy(error: ImportError, system: str, machine: str, installed: dict[str, str]) -> str:
    """What to do where `import mlx.core` ends in this error.

    Args:
        error: what the import raised.
        system: `sys.platform`.
        machine: `platform.machine()`.
        installed: version of each installed distribution of MLX.
    """
    if system == "darwin" and machine != "arm64":
        return "MLX needs Apple silicon and a Python made for it (arm64); this one is for " + machine
    if system == "darwin":
        return "on macOS: pip install --upgrade --force-reinstall mlx"
    if system != "linux":
        return f"MLX has builds for macOS and Linux, and this is {system}"
    if "mlx" not in installed:
        return CHOICE
    builds = [name for name in BUILDS if name in installed]
    if len(builds) > 1:
        names = " and ".join(builds)
        everything = " ".join(["mlx", *builds])
        return f"{names} overwrite each other's files: pip uninstall {everything}, then {CHOICE}"
    if not builds:
        return f"on Linux MLX's library is a package of its own: {CHOICE}"
    (build,) = builds
    if installed["mlx"] != installed[build]:
        versions = f"mlx is {installed['mlx']} and {build} is {installed[build]}, which do not go together"
        return f"{versions}: pip install {build}=={installed['mlx']}"
    if "libcuda.so" in str(error):
        everything = f"pip uninstall mlx {build}, then pip install 'flextrace[cpu]'"
        return f"{build} needs an NVIDIA driver, which this machine lacks; without one: {everything}"
    return f"install it again: pip install --force-reinstall mlx=={installed[build]} {build}=={installed[build]}"


def message(error: ImportError) -> str:
    """What flextrace says where `import mlx.core` ends in this error."""
    installed = {}
    for name in ("mlx", *BUILDS):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    missing = isinstance(error, ModuleNotFoundError) and error.name in ("mlx", "mlx.core")
    state = "which is not installed" if missing else f"which does not load ({error})"
    return f"flextrace needs MLX, {state}; {remedy(error, sys.platform, platform.machine(), installed)}"


def _is_the_command() -> bool:
    """Whether this process is the `flextrace` command, or `python -m flextrace`."""
    return Path(sys.argv[0]).name in ("flextrace", "flextrace.exe") or (
        sys.argv[:1] == ["-m"] and "flextrace" in sys.orig_argv
    )


def _load() -> None:
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        if not _is_the_command():
            raise ImportError(message(error), name="mlx.core") from error
        print(message(error), file=sys.stderr)
        raise SystemExit(CANNOT) from None


_load()
