"""Attention on NVIDIA GPUs: CUDA text -> cubin -> a node of MLX's graph."""
