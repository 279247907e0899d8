"""`flextrace doctor`: this machine -> what flextrace finds on it, and whether its kernels compile and run here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.markup import escape

import flextrace
from flextrace.cache import CacheError, Store, key_of
from flextrace.kernels import BACKENDS, backend_for
from flextrace.kernels.cpu.launch import thread_count
from flextrace.kernels.cuda.device import capability
from flextrace.kernels.cuda.nvrtc import REMEDY as NVRTC_REMEDY
from flextrace.kernels.cuda.nvrtc import find_nvrtc
from flextrace.kernels.registry import chosen_name, default_name
from flextrace.kernels.toolchain import find_compiler, no_compiler
from flextrace.show.cache_table import REMEDY as CACHE_REMEDY
from flextrace.show.terminal import output

from .kernels import FAILED, NOT_AVAILABLE, OK, Check, check_backend

STYLES = {OK: "green", NOT_AVAILABLE: "yellow", FAILED: "bold red"}


def examine(*, as_json: bool = False) -> bool:
    """Make all checks and print one line each; whether all that can run here passed."""
    console = output(stderr=as_json)
    made = []
    with console.status("looking") as status:
        for check in all_checks(lambda what: status.update(f"checking {what}")):
            made.append(check)
            if not as_json:
                _print(check, console)
    failed = [check for check in made if check.status == FAILED]
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in made]}, indent=1))
    elif failed:
        console.print(f"{len(failed)} of {len(made)} checks FAILED: report them with all lines above", style="bold red")
    else:
        passed = sum(check.status == OK for check in made)
        console.print(f"{passed} checks passed, {len(made) - passed} not available here", style="bold")
    return not failed


def _print(check: Check, console: Console) -> None:
    style = STYLES[check.status]
    duration = f"  {check.seconds:.1f} s" if check.seconds >= 0.05 else ""
    line = f"[{style}]{check.status:<13}[/]  {check.group:<11}  {escape(check.name)}: {escape(check.detail)}{duration}"
    console.print(line)


def all_checks(starting: Callable[[str], None] = lambda what: None) -> Iterator[Check]:
    """The environment, the cache, then every backend, as they are made; `starting` hears what comes next."""
    yield from environment()
    starting("the cache")
    yield from cache_health()
    with _kernels_of_its_own():
        for name in BACKENDS:
            starting(f"the {name} backend")
            yield from check_backend(name)


def environment() -> Iterator[Check]:
    """What this machine is, in the order in which a reader asks."""
    mac = platform.mac_ver()[0]
    yield Check("system", "platform", OK, f"macOS {mac}, {platform.machine()}" if mac else platform.platform())
    yield Check("system", "python", OK, f"{platform.python_implementation()} {platform.python_version()}")
    versions = (
        ("flextrace", flextrace.__version__),
        ("mlx", importlib.metadata.version("mlx")),
        ("numpy", np.__version__),
    )
    for name, version in versions:
        yield Check("system", name, OK, version)
    yield _mlx_build()
    yield Check("mlx", "default device", OK, f"{mx.default_device()}, {_device_name()}")
    cuda = getattr(mx, "cuda", None)
    for name, found in (("Metal", mx.metal.is_available()), ("CUDA", cuda is not None and cuda.is_available())):
        yield Check("mlx", name, OK if found else NOT_AVAILABLE, "" if found else "MLX finds no such device here")
    yield _compiler("C++ compiler", _cpu_compiler)
    yield _compiler("g++ of the simulator", _simulator_compiler)
    yield _nvrtc()
    yield _chosen_backend()
    yield _threads()


def _nvrtc() -> Check:
    """The compiler of CUDA kernels, with the architecture that it would make them for."""
    found, gpu = find_nvrtc(), capability()
    if found is None:
        return Check("system", "NVRTC", NOT_AVAILABLE, f"for NVIDIA GPUs alone: {NVRTC_REMEDY}")
    for_gpu = ", for no GPU here" if gpu is None else f", for sm_{gpu}"
    return Check("system", "NVRTC", OK, ".".join(map(str, found.version)) + for_gpu)


def _chosen_backend() -> Check:
    """The backend of a call that asks for none."""
    try:
        wanted = chosen_name(None)
    except ValueError as error:
        return Check("system", "backend", FAILED, str(error))
    name, by = wanted or default_name(), ", by FLEXTRACE_BACKEND" if wanted else ""
    reason = backend_for(name, to_run=False).unavailable()
    if reason is not None:
        instead = "calls raise BackendUnavailable" if wanted else "calls run on MLX operations, which is slower"
        return Check("system", "backend", FAILED, f"{name}{by}, cannot run here, so {instead}: {reason}")
    return Check("system", "backend", OK, f"{name}{by}")


def _threads() -> Check:
    """How many threads the cpu kernels take."""
    by = ", by FLEXTRACE_NUM_THREADS" if os.environ.get("FLEXTRACE_NUM_THREADS") else ""
    try:
        return Check("system", "threads", OK, f"{thread_count()}{by}")
    except ValueError as error:
        return Check("system", "threads", FAILED, str(error))


def _mlx_build() -> Check:
    """Which of MLX's builds is installed: its kernels come in a package of their own, of the same version."""
    version = importlib.metadata.version("mlx")
    found = {}
    for name in ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-cuda"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    shown = ", ".join(f"{name} {of}" for name, of in found.items()) or "in one package, or built from source"
    wrong = [name for name, of in found.items() if of != version]
    if wrong:
        remedy = f"pip install --force-reinstall mlx=={version} {wrong[0]}=={version}"
        return Check("mlx", "build", FAILED, f"{shown} beside mlx {version}: {remedy}")
    return Check("mlx", "build", OK, shown)


def _device_name() -> str:
    """The name of MLX's default device; older releases know only a Metal one."""
    for place in (mx, mx.metal):
        try:
            return str(place.device_info()["device_name"])
        except (AttributeError, KeyError, RuntimeError):
            continue
    return platform.processor() or "unnamed"


def _compiler(name: str, find: Callable[[], tuple[str, str]]) -> Check:
    try:
        path, version = find()
    except RuntimeError as error:
        return Check("system", name, NOT_AVAILABLE, str(error))
    return Check("system", name, OK, f"{path}, {version}")


def _cpu_compiler() -> tuple[str, str]:
    found = find_compiler(os.environ.get("CXX"))
    if found is None:
        raise RuntimeError(no_compiler(os.environ.get("CXX")))
    return shlex.join([found.path, *found.words]), found.version()


def _simulator_compiler() -> tuple[str, str]:
    from flextrace.kernels.simulator.build import compiler

    found = compiler()
    return shlex.join([found.path, *found.words]), found.version()


def cache_health() -> Iterator[Check]:
    """The user's cache folder: what is in it, whether all of it is whole, and whether it takes a new entry."""
    store = Store()
    try:
        entries, size, damaged = store.entries(), store.size(), store.verify()
    except CacheError as error:
        yield Check("cache", "folder", FAILED, str(error))
        return
    except OSError as error:
        yield Check("cache", "folder", FAILED, f"{error}; set FLEXTRACE_CACHE_DIR to a folder that can be read")
        return
    yield Check("cache", "folder", OK, f"{store.folder}: {len(entries)} kernels, {size / 1e6:.1f} MB")
    if damaged:
        key, reason = next(iter(damaged.items()))
        detail = f"{len(damaged)} damaged, the first {key[:12]}: {reason}; `flextrace cache verify` lists all, "
        detail += CACHE_REMEDY
        yield Check("cache", "verification", FAILED, detail)
    else:
        yield Check("cache", "verification", OK, "every file has its checksum")
    yield _takes_an_entry(store)


def _takes_an_entry(store: Store) -> Check:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "note.txt").write_text("flextrace doctor was here\n", encoding="ascii")
        return {"backend": "none"}

    key = key_of("flextrace doctor", os.urandom(16))
    try:
        entry = store.get_or_build(key, build, ["note.txt"])
        kept = entry.folder.is_relative_to(store.folder)
        if kept:
            store.remove(key)
    except (CacheError, OSError) as error:
        return Check("cache", "writing", FAILED, str(error))
    if not kept:
        return Check(
            "cache", "writing", NOT_AVAILABLE, "kernels go to a temporary folder: this one is read-only or full"
        )
    return Check("cache", "writing", OK, "an entry was written, read and removed")


@contextmanager
def _kernels_of_its_own() -> Iterator[None]:
    """An empty cache for the self-test: every kernel is compiled now, and none of them stays.

    A FLEXTRACE_NUM_THREADS that is no number has its own check, and fails no kernel.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="flextrace-doctor-", ignore_cleanup_errors=True) as folder:
        os.environ["FLEXTRACE_CACHE_DIR"] = os.path.join(folder, "cache")
        if _threads().status == FAILED:
            del os.environ["FLEXTRACE_NUM_THREADS"]
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
