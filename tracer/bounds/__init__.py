"""Expr over ranges of indices -> what it can be: skipped and full tiles, indices that leave an array."""
