"""Gradients of captured arrays in CUDA: sums over diagonals and pairs, and where all sums go."""
