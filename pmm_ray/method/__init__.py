"""The paper's mathematics: pure NumPy and Numba, without Ray, mmseg or file access."""
