"""Kernels: one algorithm, one file. `base` says what a kernel is, and shows one of one's own."""
