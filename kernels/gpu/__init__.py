"""What the backends of GPUs share: the tiles that a block mask leaves, captured arrays as buffers, their extremes,
and what makes their gradients of sums."""
