"""AttentionCall -> Metal kernel, run lane by lane on the host CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..backend import Built
from ..call import AttentionCall
from ..metal.backend import MetalBackend, no_results
from ..metal.kernel import Factory
from ..spec import short_name
from .build import SimulatorUnavailable, build, compiler
from .kernel import PREFIX, metal_kernel
from .translate.signature import template_text
from .translate.translate import translate


class SimulatorBackend(MetalBackend):
    """The Metal kernels with race, bounds and initialisation checks."""

    name = "simulator"
    lazy = False

    def __init__(self, metal_kernel: Factory = metal_kernel) -> None:
        super().__init__(metal_kernel)

    def unavailable(self) -> str | None:
        try:
            compiler()
        except SimulatorUnavailable as reason:
            return str(reason)
        return None

    def no_async_copy(self) -> str | None:
        """The simulator has the intrinsic."""
        return None

    def build(self, call: AttentionCall, gradients: bool = False) -> list[Built]:
        """Every kernel that the call launches, compiled for its dtypes and shapes."""
        found: dict[str, Built] = {}
        shape = f"{str(call.q.dtype).removeprefix('mlx.core.')}, head_dim {call.q.shape[-1]}"

        def factory(**definition: Any) -> Callable[..., list[mx.array]]:
            kernel = metal_kernel(**definition)

            def launch(**call: Any) -> list[mx.array]:
                template = call.get("template") or ()
                text = kernel.text([mx.array(given) for given in call["inputs"]], call["output_dtypes"], template)
                values = ", ".join(template_text(value) for _, value in template)
                translated, _ = translate(text, f"{PREFIX}{kernel.name}", values)
                key = build(translated, kernel.checks, kernel.name).path.parent.name
                found.setdefault(key, Built(f"{short_name(kernel.name)}, {shape}", key))
                return no_results(call)

            return launch

        SimulatorBackend(factory).load(self.spec(call)).run(call)
        return list(found.values())
