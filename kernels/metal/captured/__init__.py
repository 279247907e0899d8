"""Gradients of captured arrays in Metal: sums over diagonals and pairs, and where all sums go."""
