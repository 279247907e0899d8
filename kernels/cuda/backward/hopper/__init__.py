"""Gradients of q, k and v on Hopper GPUs: wgmma and TMA."""
