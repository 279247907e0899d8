"""Gradients of captured arrays in Metal: sums over rows, columns, diagonals and pairs, and where they go."""
