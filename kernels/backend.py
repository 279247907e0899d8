"""What a backend is: a folder that runs attention, and what it says where it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from flextrace.tracer.errors import Brief

from .call import AttentionCall, BackwardCall, Gradients, Result
from .spec import Formulas, KernelSpec
from .stages.protocol import Stages


class BackendUnavailable(Brief, RuntimeError):
    """A backend cannot run here, or not inside this MLX transformation. The message names the remedy.

    Example:
        >>> import mlx.core as mx, flextrace as flex
        >>> q = mx.ones((1, 1, 4, 8))
        >>> try:
        ...     out = flex.flex_attention(q, q, q, kernel_options={"BACKEND": "metal"})
        ... except flex.BackendUnavailable:
        ...     out = flex.flex_attention(q, q, q, kernel_options={"BACKEND": "ops"})
        >>> out.shape
        (1, 1, 4, 8)
    """


class Built(NamedTuple):
    """A kernel on disk: what people are told of it, and the key of its entry.

    for_readers: the entry holds a text that is kept for people only.
    """

    kernel: str
    key: str
    for_readers: bool = False


class Kernel(Protocol):
    """A kernel that can run."""

    def run(self, call: AttentionCall) -> Result:
        """Run the attention kernel. Raises ValueError where MLX forbids to evaluate (inside mx.compile and mx.vmap)."""


class Backend(Protocol):
    """What a folder of `kernels/` provides."""

    name: str
    lazy: bool  # a call adds to MLX's graph and evaluates nothing, or (ops) only v, where MLX lets it
    quantises: bool  # follows `quant` and `smoothing` of a call
    keeps_gradients: bool  # kernels of gradients are on disk for later processes
    forward: tuple[str, ...]  # names of its attention kernels, the one for any call first

    @property
    def kernels(self) -> Mapping[KernelSpec, Any] | None:
        """Its kernels in memory; None where it has none to build."""

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, or None."""

    def spec(self, call: AttentionCall) -> KernelSpec:
        """The attention kernel for a call."""

    def named(self, mods: Formulas) -> dict[str, KernelSpec]:
        """Its attention kernels for these mods by the names that people use: "attention" first, each in the variant for
        the plainest call."""

    def text(self, spec: KernelSpec) -> str:
        """The complete text of a kernel. Raises ValueError where it captures more than this backend takes."""

    def key(self, spec: KernelSpec) -> str | None:
        """The name of a kernel on disk; None where none can be there."""

    def load(self, spec: KernelSpec) -> Kernel:
        """A kernel: from memory, from disk, or built."""

    def build(self, call: AttentionCall, gradients: bool = False) -> list[Built]:
        """Have on disk what a call needs, without running it; and what its gradients need, where the backend keeps
        that."""

    def backward(self, call: BackwardCall) -> Gradients | None:
        """What MLX's differentiation asks for; None where it has no kernels of gradients. A backend that only adds MLX
        operations leaves that to MLX."""

    def stages(self, threads: int = 0) -> Stages:
        """Its stage kernels. Raises ValueError where there are none."""


def needs_values(error: Exception) -> bool:
    """Whether this is MLX's refusal to evaluate inside mx.compile or mx.vmap."""
    return "during function transformations" in str(error)
