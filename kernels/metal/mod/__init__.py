"""The hole of the Metal kernels, and what the text in it may call."""
