"""Mean field from energies: any floats, any number of kernels, any compatibility of labels.

The logits of a label are `-U_l + sum_k (A_k K_k Q)_l`: A is a number, a vector (a diagonal) or a
matrix over the labels. Two labels need one channel whatever A is: `K Q_0 = K 1 - K Q_1`. More
labels that all attract only themselves, equally, go to `solve_joint`; what is left is solved label
by label in NumPy.
"""

# N: pixels; M: labels.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array
from latticecrf.mean_field.binary import solve_binary
from latticecrf.mean_field.filter_bank import FilterBank
from latticecrf.mean_field.joint import solve_joint

Attraction = float | Float32Array

# Up to this message float32 holds a label's score times what its message makes of it.
_SAFE_MESSAGE = 50.0
# Scores are relative to a pixel's best: with a safe message this little is next to nothing.
_FLOOR = np.float32(1e-30)
_WIDEST = 16
_LARGEST_LOGIT = 1e30


def solve_energies(
    bank: FilterBank,
    energies_MN: Float32Array,
    attractions: Sequence[Attraction],
    iterations: int,
) -> Float32Array:
    """Posteriors after some iterations.

    Args:
        bank: The filters.
        energies_MN: float32 [M, N] in raster order; infinity forbids a label, not all of a pixel.
        attractions: One for each kernel: a number, float32 [M] or float32 [M, M].
        iterations: Mean-field iterations, 0 or more.

    Returns:
        float32 [M, N], adding up to one over M.
    """
    if len(energies_MN) == 2:
        return _solve_two(bank, energies_MN, attractions, iterations)
    attractions = [_plain(attraction) for attraction in attractions]
    weights = [attraction for attraction in attractions if isinstance(attraction, float)]
    alike = len(weights) == len(attractions) and min(weights, default=0.0) >= 0.0
    if alike and float(bank.mass(weights).max()) <= _SAFE_MESSAGE:
        scores_MN = np.exp(energies_MN.min(axis=0) - energies_MN)
        posterior_MN = np.empty_like(scores_MN)
        solve_joint(bank, scores_MN, _FLOOR, weights, iterations, posterior_MN)
        return posterior_MN
    posterior_MN = softmax(-energies_MN)
    for _ in range(iterations):
        posterior_MN = update(bank, energies_MN, attractions, posterior_MN)
    return posterior_MN


def update(
    bank: FilterBank,
    energies_MN: Float32Array,
    attractions: Sequence[Attraction],
    posterior_MN: Float32Array,
) -> Float32Array:
    """The posteriors of one more iteration, float32 [M, N]."""
    return softmax(_messages(bank, attractions, posterior_MN) - energies_MN)


def divergence(
    bank: FilterBank,
    energies_MN: Float32Array,
    attractions: Sequence[Attraction],
    posterior_MN: Float32Array,
) -> float:
    """The Kullback-Leibler divergence to the field, up to its constant: what mean field lowers."""
    posterior = posterior_MN.astype(np.float64)
    possible = posterior > 0.0
    energy = np.where(possible, energies_MN, 0.0) - _messages(bank, attractions, posterior_MN)
    logarithm = np.log(posterior, out=np.zeros_like(posterior), where=possible)
    return float((posterior * (logarithm + energy)).sum())


def softmax(logits_MN: Float32Array) -> Float32Array:
    """`exp(logits)` over its sum along M, float32 [M, N]."""
    grown_MN = np.exp(logits_MN - logits_MN.max(axis=0))
    return grown_MN / grown_MN.sum(axis=0)


def _solve_two(
    bank: FilterBank,
    energies_2N: Float32Array,
    attractions: Sequence[Attraction],
    iterations: int,
) -> Float32Array:
    with np.errstate(over="ignore"):
        logits_N = energies_2N[0] - energies_2N[1]
    posterior_2N = np.empty_like(energies_2N)
    np.clip(logits_N, -_LARGEST_LOGIT, _LARGEST_LOGIT, out=posterior_2N[1])
    losses, factors = [], []
    for attraction in attractions:
        (a, b), (c, d) = as_matrix(attraction, 2)
        # Label 1's message less label 0's: (c - a) K 1 + (a + d - b - c) K Q_1.
        losses.append(float(a - c))
        factors.append(float(a + d - b - c))
    masses_N = bank.mass(losses)
    solve_binary(bank, posterior_2N[1:], masses_N, factors, iterations, posterior_2N[:1])
    return posterior_2N


def _plain(attraction: Attraction) -> Attraction:
    """The number that makes the same posteriors, if there is one.

    What all labels add to one another equally, they add to each logit of a pixel: no posterior
    changes.
    """
    if isinstance(attraction, float):
        return attraction
    matrix = as_matrix(attraction, len(attraction))
    own, other = matrix[0, 0], matrix[0, -1]
    alike = np.full_like(matrix, other)
    np.fill_diagonal(alike, own)
    return float(own - other) if np.array_equal(matrix, alike) else attraction


def _messages(
    bank: FilterBank, attractions: Sequence[Attraction], posterior_MN: Float32Array
) -> Float32Array:
    """The sum over the kernels of `A K Q`, float32 [M, N]."""
    labels, pixels = posterior_MN.shape
    filtered = [np.empty((labels, pixels), np.float32) for _ in attractions]
    for first in range(0, labels, _WIDEST):
        planes = posterior_MN[first : first + _WIDEST]
        lanes = 1 << (len(planes) - 1).bit_length()
        rows_NL = np.zeros((pixels, lanes), np.float32)
        rows_NL[bank.places, : len(planes)] = planes.T
        found = bank.filter_each(rows_NL.ravel(), lanes, bank.scratch(lanes))
        for target, (rows, mate) in zip(filtered, found, strict=True):
            rows_NL = rows.reshape(pixels, lanes)
            target[first : first + _WIDEST] = rows_NL[mate, : len(planes)].T
    total_MN = np.zeros((labels, pixels), np.float32)
    for attraction, planes in zip(attractions, filtered, strict=True):
        if isinstance(attraction, float):
            total_MN += np.float32(attraction) * planes
        elif attraction.ndim == 1:
            total_MN += attraction[:, None] * planes
        else:
            total_MN += attraction @ planes
    return total_MN


def as_matrix(attraction: Attraction, labels: int) -> npt.NDArray[np.floating]:
    """An attraction written out over all pairs of labels."""
    if isinstance(attraction, float):
        return attraction * np.eye(labels)
    return np.diag(attraction) if attraction.ndim == 1 else attraction
