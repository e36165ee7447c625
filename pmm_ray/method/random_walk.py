"""Random walk: class scores spread to where the affinities lead (AffinityNet; Tab. 2 and 3).

Legend: D = directions, M = score maps, h, w = feature px, N = h * w.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from latticecrf.checks import Float32Array, FloatArray, check_array
from latticecrf.ranges import check_number
from pmm_ray.method.affinity import directions, shifted


def transition_matrix(affinity_Dhw: FloatArray, radius: int, beta: float = 8.0) -> sparse.csr_array:
    """The matrix of one step: `A ** beta` element by element, its rows divided by their sums.

    Args:
        affinity_Dhw: affinities of the pairs, floating [D, h, w], 0..1, as
            `affinity.pair_affinities` gives them. Every pixel has affinity 1 to itself.
        radius: that they were made with.
        beta: exponent, > 0: large ones keep the walk inside objects (released PMM code: 8;
            AffinityNet: 8).

    Returns:
        float64 [N, N], rows sum to 1; row i says where the scores of pixel i come from.

    Raises:
        ValueError: shape, dtype or values do not fit.

    Source: the paper of AffinityNet, its own Eq. 8.
    """
    ways = directions(radius)
    affinity = check_array("affinity_Dhw", affinity_Dhw, "Dhw", (len(ways), None, None))
    check_number("beta", beta, 0.0, low_open=True)
    if affinity.size and (affinity.min() < 0 or affinity.max() > 1):
        raise ValueError("affinity_Dhw must be in 0..1")
    height, width = affinity.shape[1:]
    places_hw = np.arange(height * width).reshape(height, width)
    ones, others, weights = [places_hw.ravel()], [places_hw.ravel()], [np.ones(height * width)]
    for plane_hw, (here, there) in zip(affinity, shifted(ways, height, width), strict=True):
        one, other = places_hw[here].ravel(), places_hw[there].ravel()
        weight = plane_hw[here].ravel().astype(np.float64) ** beta
        ones += [one, other]
        others += [other, one]
        weights += [weight, weight]
    index = np.concatenate(ones), np.concatenate(others)
    matrix = sparse.coo_array((np.concatenate(weights), index), (places_hw.size,) * 2).tocsr()
    inverse = sparse.diags_array(1.0 / matrix.sum(axis=1))
    return sparse.csr_array(inverse @ matrix)


def random_walk(
    scores_Mhw: FloatArray,
    affinity_Dhw: FloatArray,
    radius: int,
    *,
    beta: float = 8.0,
    log_steps: int = 6,
) -> Float32Array:
    """Scores after `2 ** log_steps` steps, `T ** (2 ** log_steps) @ scores`.

    The sparse matrix is applied step by step: the power of it would be full (released code squares
    it `log_steps` times), and takes a hundred times as long.

    Args:
        scores_Mhw: floating [M, h, w], finite; the background is one of them.
        affinity_Dhw, radius, beta: see `transition_matrix`.
        log_steps: binary logarithm of the number of steps, >= 0 (released PMM code: 6).

    Returns:
        float32 [M, h, w]; each value is a mean of the map's values, so its range stays.

    Raises:
        ValueError: shape, dtype or values do not fit.

    Source: AffinityNet, Eq. 9 of its paper.
    """
    affinity = check_array("affinity_Dhw", affinity_Dhw, "Dhw")
    scores = check_array("scores_Mhw", scores_Mhw, "Mhw", (None, *affinity.shape[1:]))
    if log_steps < 0:
        raise ValueError(f"log_steps must be at least 0, got {log_steps}")
    step = transition_matrix(affinity, radius, beta)
    spread_NM = scores.reshape(len(scores), step.shape[0]).T.astype(np.float64)
    for _ in range(2**log_steps):
        spread_NM = step @ spread_NM
    return np.ascontiguousarray(spread_NM.T, np.float32).reshape(scores.shape)


def averaged(map_MHW: Float32Array, height: int, width: int) -> NDArray[np.float32]:
    """Maps brought to a smaller grid by averaging, float32 [M, height, width].

    Args:
        map_MHW: float32 [M, H, W].
        height, width: of the grid, px, at least 1.
    """
    rows, columns = (
        _averages(size, grid) for size, grid in zip(map_MHW.shape[1:], (height, width), strict=True)
    )
    return np.einsum("hH,MHW,wW->Mhw", rows, map_MHW, columns, optimize=True)


def _averages(size: int, grid: int) -> NDArray[np.float32]:
    """float32 [grid, size]: row i averages the share of the axis that cell i covers."""
    edges = np.linspace(0, size, grid + 1)
    pixels = np.arange(size)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(covered, 0, 1)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
