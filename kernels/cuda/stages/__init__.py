"""The stages of attention as CUDA kernels, one file each, and their launches."""
