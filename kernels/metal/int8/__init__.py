"""Rounding and smoothing of q and k in Metal."""
