"""`mx.fast.metal_kernel`, on the host: the same call, run lane by lane under checks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import numpy as np

from ..buffers import locate
from .build import build
from .launch import ORDERS, Argument, launch
from .report import Report, SimulationError
from .translate.signature import CONSTANT_SIZE, TYPES, infos_of, template_text, write_function
from .translate.translate import translate

MAX_BUFFERS, MAX_THREADS = 31, 1024
PREFIX = "custom_kernel_"  # MLX puts it before the name, so that a kernel may be called `max`
MATH_MODES = ("safe", "relaxed", "fast")
_INFO_TYPES = {"shape": np.int32, "strides": np.int64, "ndim": np.int32}
_recording: ContextVar[list[Report] | None] = ContextVar("_recording", default=None)


@contextmanager
def recording() -> Iterator[list[Report]]:
    """Collect the reports of all simulated kernels that run inside, in order.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> q = mx.ones((1, 1, 32, 32))
        >>> with recording() as reports:
        ...     out = flex.flex_attention(q, q, q, kernel_options={"BACKEND": "simulator"})
        >>> len(reports), reports[0].findings
        (1, ())
    """
    reports: list[Report] = []
    token = _recording.set(reports)
    try:
        yield reports
    finally:
        _recording.reset(token)


def record(report: Report) -> Report:
    """Hand a report to `recording`, and raise its findings. Raises SimulationError."""
    reports = _recording.get()
    if reports is not None:
        reports.append(report)
    if report.findings:
        raise SimulationError(report)
    return report


class MetalKernel:
    """A Metal kernel that runs on the host; made by `metal_kernel`. `report`: what the last call did."""

    def __init__(
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str,
        ensure_row_contiguous: bool,
        atomic_outputs: bool,
        checks: bool,
        lane_order: str,
    ) -> None:
        if not name.isidentifier():
            raise ValueError(f"the kernel's name {name!r} must be a C++ identifier: letters, digits and _")
        for part, text in (("source", source), ("header", header)):
            if not text.isascii():
                letter = next(letter for letter in text if ord(letter) > 127)
                line = text[: text.index(letter)].count("\n") + 1
                raise ValueError(
                    f"the {part} of kernel {name!r} has {letter!r} in line {line}; Metal text is ASCII only"
                )
        if lane_order not in ORDERS:
            raise ValueError(f"lane_order is one of {', '.join(ORDERS)}; got {lane_order!r}")
        self.name: str = name
        self.input_names: tuple[str, ...] = tuple(input_names)
        self.output_names: tuple[str, ...] = tuple(output_names)
        self.source: str = source
        self.header: str = header
        self.ensure_row_contiguous: bool = ensure_row_contiguous
        self.atomic_outputs: bool = atomic_outputs
        self.checks: bool = checks
        self.lane_order: str = lane_order
        self.report: Report | None = None

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        """Run the kernel now (MLX would run it lazily) and give its outputs. `stream` changes nothing here.

        Raises:
            SimulationError: the checks found something wrong.
            CompileError: the text does not compile.
            RewriteError: the text has something that the simulator does not understand.
            ValueError: the call breaks a limit of Metal or does not fit the kernel's names.
        """
        arrays = [value if isinstance(value, mx.array) else mx.array(value) for value in inputs]
        self._check(arrays, output_shapes, output_dtypes)
        if self.ensure_row_contiguous:
            arrays = [mx.contiguous(array) for array in arrays]
        mx.eval(arrays)
        text = self.text(arrays, output_dtypes, template or ())
        if verbose:
            print(text)
        values = ", ".join(template_text(value) for _, value in template or ())
        translated, _ = translate(text, f"{PREFIX}{self.name}", values)
        library = build(translated, self.checks, self.name)
        outputs = [_output(shape, dtype, init_value) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]
        arguments, kept = self._arguments(arrays)
        for label, (content, dtype) in zip(self.output_names, outputs, strict=True):
            arguments.append(
                Argument(label, content.ctypes.data, content.nbytes, dtype.size, 0, True, init_value is not None)
            )
        if len(arguments) > MAX_BUFFERS:
            raise ValueError(f"kernel {self.name!r} has {len(arguments)} buffers; Metal allows {MAX_BUFFERS}")
        size = _group(self.name, grid, threadgroup)
        self.report = launch(library, self.name, arguments, grid, size, self.lane_order, self.checks)
        del kept
        record(self.report)
        return [_to_mlx(content, dtype) for content, dtype in outputs]

    def text(
        self, inputs: Sequence[mx.array], output_dtypes: Sequence[mx.Dtype], template: Sequence[tuple[str, Any]]
    ) -> str:
        """The Metal text of a call: the header, and the function with the signature that MLX writes."""
        named = [(label, a.dtype, a.ndim, a.size) for label, a in zip(self.input_names, inputs, strict=True)]
        outputs = list(zip(self.output_names, output_dtypes, strict=True))
        place = f"{self.name}.metal"
        function = write_function(
            f"{PREFIX}{self.name}", place, self.source, named, outputs, template, self.atomic_outputs
        )
        head = f'#line 1 "{self.name}_header.metal"\n{self.header}\n' if self.header else ""
        return f'{head}#line 1 "{self.name}_signature.metal"\n{function}'

    def _arguments(self, arrays: Sequence[mx.array]) -> tuple[list[Argument], list[np.ndarray[Any, Any]]]:
        arguments: list[Argument] = []
        kept: list[np.ndarray[Any, Any]] = []  # memory of shapes and strides, alive until the run is over
        for label, array in zip(self.input_names, arrays, strict=True):
            item = array.dtype.size
            address, strides = locate(array) if array.size else (0, (0,) * array.ndim)
            low, high = _extent(array.shape, strides) if array.size else (0, 0)
            constant = array.size < CONSTANT_SIZE
            place = (address + low * item, (high - low) * item, item, -low * item)
            arguments.append(Argument(label, *place, constant=constant))
            facts = {"shape": array.shape, "strides": strides, "ndim": (array.ndim,)}
            for info in infos_of(label, array.ndim, self.source):
                content = np.array(facts[info], _INFO_TYPES[info])
                kept.append(content)
                fact = (content.ctypes.data, content.nbytes, content.itemsize)
                arguments.append(Argument(f"{label}_{info}", *fact, constant=True))
        return arguments, kept

    def _check(self, arrays: Sequence[mx.array], shapes: Sequence[Any], dtypes: Sequence[mx.Dtype]) -> None:
        pairs = (
            ("inputs", len(arrays), len(self.input_names)),
            ("output_shapes", len(shapes), len(self.output_names)),
            ("output_dtypes", len(dtypes), len(self.output_names)),
        )
        for what, given, wanted in pairs:
            if given != wanted:
                raise ValueError(f"kernel {self.name!r} names {wanted} {what}, the call gives {given}")
        for dtype in (*(array.dtype for array in arrays), *dtypes):
            if dtype not in TYPES:
                raise TypeError(f"kernel {self.name!r}: the simulator has no Metal type for {dtype}; cast it")


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: Mapping[str, str] | None = None,
    *,
    checks: bool = True,
    lane_order: str = "forward",
) -> MetalKernel:
    """A drop-in for `mx.fast.metal_kernel` that runs on the host, lane by lane, under checks.

    checks: look for races, wrong addresses, uninitialised reads and divergence, and count bytes; without, the same
    numbers several times faster. compile_options: checked, and without effect, because the host's mathematics is always
    that of math_mode "safe". lane_order: "forward", "reverse" or "shuffled", the order in which lanes run.

    >>> import mlx.core as mx
    >>> kernel = metal_kernel("twice", ["a"], ["out"], "uint i = thread_position_in_grid.x; out[i] = 2 * a[i];")
    >>> run = dict(grid=(9, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(9,)], output_dtypes=[mx.float32])
    >>> kernel(inputs=[mx.arange(9).astype(mx.float32)], **run)[0].tolist()[-1]
    16.0
    >>> kernel.report.buffers["a"].read
    36

    Raises:
        ValueError: a name, a letter or an option that Metal or MLX would refuse.
    """
    for option, value in (compile_options or {}).items():
        if option != "math_mode" or value not in MATH_MODES:
            raise ValueError(f"compile_options: math_mode is one of {', '.join(MATH_MODES)}; got {option}={value!r}")
    return MetalKernel(
        name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, checks, lane_order
    )


def _group(name: str, grid: Sequence[int], threadgroup: Sequence[int]) -> tuple[int, int, int]:
    """The size of a threadgroup, cut to the grid as MLX does. Raises ValueError for what Metal refuses."""
    for what, sizes in (("grid", grid), ("threadgroup", threadgroup)):
        if len(sizes) != 3 or any(size < 1 for size in sizes):
            raise ValueError(f"kernel {name!r}: {what} is three positive numbers of threads, got {tuple(sizes)}")
    if math.prod(threadgroup) > MAX_THREADS:
        raise ValueError(
            f"kernel {name!r}: a threadgroup of {tuple(threadgroup)} has {math.prod(threadgroup)} threads; "
            f"Metal allows {MAX_THREADS}"
        )
    x, y, z = (min(threads, whole) for threads, whole in zip(threadgroup, grid, strict=True))
    return x, y, z


def _extent(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """The lowest element offset that an array reaches, and one past the highest."""
    steps = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    return sum(min(0, step) for step in steps), sum(max(0, step) for step in steps) + 1


def _output(shape: Sequence[int], dtype: mx.Dtype, value: float | None) -> tuple[np.ndarray[Any, Any], mx.Dtype]:
    start = mx.full(tuple(shape), 0 if value is None else value).astype(dtype)
    bits = start.view(mx.uint16) if dtype == mx.bfloat16 else start
    return np.array(bits), dtype


def _to_mlx(content: np.ndarray[Any, Any], dtype: mx.Dtype) -> mx.array:
    made = mx.array(content)
    return made.view(mx.bfloat16) if dtype == mx.bfloat16 else made
