"""FlexAttention for MLX."""
