"""Which backends tests run on: on a Mac with Apple silicon, the real metal backend too."""

from __future__ import annotations

import mlx.core as mx

METAL = ("metal",) if mx.metal.is_available() else ()
COMPILED_OR_OPS = ("cpu", "ops", *METAL)
EVERY = ("cpu", "ops", "simulator", *METAL)
STAGED = ("cpu", "simulator", *METAL)
