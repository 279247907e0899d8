"""`flextrace warm`: kernels compiled ahead, for images and CI."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from enum import Enum
from typing import Annotated, Any, Optional

import typer

from flextrace.show.terminal import output, print_json, prints_to_stderr, working

from .exits import CommandError, cache_reachable, expected_errors
from .problem import DType, problem_of
from .show import TARGET, KernelBackend, default_backend


class QKQuantName(str, Enum):
    """What "QK_QUANT" of kernel_options may be by name."""

    int8 = "int8"


@expected_errors("warm")
def warm(
    targets: Annotated[list[str], typer.Argument(metavar="MODULE:NAME...", help=TARGET)],
    shape: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="B,H,L,D", help="batch,heads,length,head_dim of query; may be given again. 1,8,1024,64."),
    ] = None,
    dtype: Annotated[
        Optional[list[DType]],  # noqa: UP045
        typer.Option(help="May be given again; float32 without."),
    ] = None,
    kv_heads: Annotated[Optional[int], typer.Option(min=1, help="Heads of key and value.")] = None,  # noqa: UP045
    kv_len: Annotated[Optional[int], typer.Option(min=1, help="Length of key and value.")] = None,  # noqa: UP045
    block_mask: Annotated[
        bool, typer.Option("--block-mask", help="For calls that pass create_block_mask(...) of the mask.")
    ] = False,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="For training: the kernels of gradients too (cpu).")
    ] = False,
    qk_quant: Annotated[
        Optional[QKQuantName],  # noqa: UP045
        typer.Option(help='For calls with kernel_options={"QK_QUANT": ...}.'),
    ] = None,
    smooth_k: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(help='For calls with kernel_options={"SMOOTH_K": ...}.'),
    ] = None,
    smooth_q: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(help='For calls with kernel_options={"SMOOTH_Q": ...}.'),
    ] = None,
    backend: Annotated[
        Optional[KernelBackend],  # noqa: UP045
        typer.Option(help="Whose kernels; without, the one that runs here."),
    ] = None,
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="SM", help="With --backend cuda: the GPU that they are for, as sm_90a; none is needed here."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compile ahead what flex_attention will need for these mods, so that a later process only loads it.

    One kernel of the cpu backend serves all shapes, dtypes and BlockMasks of its mods, and another one few query rows
    (give that shape, too). On metal only the kernel's text
    is kept: MLX compiles it once in every process. On cuda a kernel is for a dtype, head dims and an architecture;
    --arch names that of another machine, which finds it if its NVRTC is of the same version.
    """
    from flextrace import CacheWarning
    from flextrace.warm import Warmed, steps

    from .resolve import find_mods

    options: dict[str, Any] = {"QK_QUANT": None if qk_quant is None else qk_quant.value}
    options |= {"SMOOTH_K": smooth_k, "SMOOTH_Q": smooth_q}
    options = {name: value for name, value in options.items() if value is not None}
    problems = [problem_of(given, DType.float32, kv_heads, kv_len) for given in shape or ["1,8,1024,64"]]
    with prints_to_stderr():
        pairs = [find_mods(target) for target in targets]
    name = backend.value if backend is not None else "cuda" if arch is not None else default_backend()
    dtypes = [each.value for each in dtype or [DType.float32]]
    try:
        with prints_to_stderr(), cache_reachable():
            todo = steps(
                pairs, [problem.shapes for problem in problems], dtypes, name, options, block_mask, gradients, arch
            )
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise CommandError(str(error)) from error
    made: list[Warmed] = []
    try:
        with working("warm", steps=len(todo)) as say, prints_to_stderr(), warnings.catch_warnings():
            warnings.simplefilter("error", CacheWarning)
            for step in todo:
                say(step.title)
                made += step.run()
                say(step.title, done=1)
    except CacheWarning as nothing_kept:
        raise CommandError(str(nothing_kept)) from nothing_kept
    compiled = sum(warmed.found == "compiled" for warmed in made)
    if json:
        print_json({"compiled": compiled, "kernels": [asdict(warmed) for warmed in made]})
        return
    console = output()
    for warmed in made:
        console.print(_line(warmed), markup=False)
    console.print(f"{compiled} compiled, {len(made) - compiled} on disk already")


def _line(warmed: Any) -> str:
    took = f", {warmed.seconds:.1f} s" if warmed.found == "compiled" else ""
    key = f"  {warmed.key[:12]}" if warmed.key else ""
    return f"{warmed.found:<9}{key}  {warmed.backend}  {warmed.mods}: {warmed.kernel}{took}"
