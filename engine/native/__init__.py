"""Kernels of our own: C for the CPU in `cpu/`, CUDA beside it."""
