"""Kernel files, and the hole in each that generated text fills."""
