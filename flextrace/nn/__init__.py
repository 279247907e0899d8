"""Modules of `mlx.nn` whose attention is flextrace's: parameters that train, save and load as those of any layer."""

from .attention import MultiHeadAttention
from .positions import AlibiSlopes, RelativePositionBias

__all__ = ["AlibiSlopes", "MultiHeadAttention", "RelativePositionBias"]
