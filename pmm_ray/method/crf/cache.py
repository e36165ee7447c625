from numba import njit


def kernel(f):
    return njit(nogil=True, cache=True)(f)
