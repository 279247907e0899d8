"""Queries, keys and values in int8 on NVIDIA GPUs, many query rows at a time (SageAttention, arXiv 2410.02367)."""
