"""Gradients of attention in CUDA: kernels that compute scores again, along the mask's rows and along its columns."""
