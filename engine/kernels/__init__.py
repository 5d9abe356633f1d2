"""Compiled kernels: which are needed, which are there, and how the others are made."""
