"""The fused kernel of the cuda backend."""
