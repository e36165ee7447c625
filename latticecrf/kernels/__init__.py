"""Kernels: compiled, kept on disk, and made ready ahead of time."""
