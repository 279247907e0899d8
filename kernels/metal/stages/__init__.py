"""The stage kernels in Metal, one file each."""
