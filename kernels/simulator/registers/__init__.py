"""Metal text -> registers that a stand-in for an Apple GPU needs: what a Linux machine can say of them."""

from .compile import NoCompiler, Registers, measured, measured_steel, why_not

__all__ = ["NoCompiler", "Registers", "measured", "measured_steel", "why_not"]
