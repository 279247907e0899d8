"""Gradients of attention in Metal: kernels that compute scores again, along the mask's rows and along its columns."""
