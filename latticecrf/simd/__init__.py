"""SIMD values of fixed width inside Numba kernels: rows, corners, tiles, and functions of them."""
