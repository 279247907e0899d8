"""This machine, the kernels on it -> what is right and wrong with them."""
