"""The random walk: by hand, against powers of a full matrix, and what every walk keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_ray.method.affinity import directions, pair_affinities
from pmm_ray.method.random_walk import averaged, random_walk, transition_matrix


def affinities(height: int, width: int, radius: int, seed: int = 0) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(1, 3, height, width))
    return pair_affinities(torch.from_numpy(features), radius)[0].numpy()


def naive_matrix(affinity: np.ndarray, radius: int, beta: float) -> np.ndarray:
    """Every pair written down, both ways."""
    height, width = affinity.shape[1:]
    full = np.eye(height * width)
    for plane, (dy, dx) in zip(affinity, directions(radius), strict=True):
        for y in range(height):
            for x in range(width):
                if y + dy < height and 0 <= x + dx < width:
                    one, other = y * width + x, (y + dy) * width + x + dx
                    full[one, other] = full[other, one] = float(plane[y, x]) ** beta
    return full / full.sum(axis=1, keepdims=True)


def test_two_pixels_by_hand() -> None:
    affinity = np.zeros((len(directions(2)), 1, 2), np.float32)
    affinity[directions(2).index((0, 1)), 0, 0] = 0.5
    # 0.5 ** 2 = 1/4: the rows are [1, 1/4] / (5/4) = [4/5, 1/5]
    step = transition_matrix(affinity, 2, beta=2).toarray()
    np.testing.assert_allclose(step, [[0.8, 0.2], [0.2, 0.8]])
    scores = np.array([[[1.0, 0.0]]], np.float32)
    one = random_walk(scores, affinity, 2, beta=2, log_steps=0)
    np.testing.assert_allclose(one, [[[0.8, 0.2]]], rtol=1e-6)
    # two steps: 0.8 * 0.8 + 0.2 * 0.2
    two = random_walk(scores, affinity, 2, beta=2, log_steps=1)
    np.testing.assert_allclose(two, [[[0.68, 0.32]]], rtol=1e-6)


@pytest.mark.parametrize(("size", "radius"), [((5, 6), 3), ((1, 7), 2), ((4, 2), 5)])
def test_the_step_is_that_of_all_pairs_written_down(size: tuple[int, int], radius: int) -> None:
    affinity = affinities(*size, radius)
    step = transition_matrix(affinity, radius, beta=3)
    np.testing.assert_allclose(step.toarray(), naive_matrix(affinity, radius, 3), atol=1e-12)


@pytest.mark.parametrize("log_steps", [0, 1, 4, 6])
def test_the_walk_is_a_power_of_the_full_matrix(log_steps: int) -> None:
    affinity = affinities(6, 5, 3)
    scores = np.random.default_rng(1).random((4, 6, 5)).astype(np.float32)
    power = np.linalg.matrix_power(naive_matrix(affinity, 3, 8), 2**log_steps)
    want = (power @ scores.reshape(4, 30).T).T.reshape(4, 6, 5)
    got = random_walk(scores, affinity, 3, beta=8, log_steps=log_steps)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(2, 4), st.floats(0.5, 16), st.integers(0, 99)
)
def test_a_step_takes_means(height: int, width: int, radius: int, beta: float, seed: int) -> None:
    affinity = affinities(height, width, radius, seed)
    step = transition_matrix(affinity, radius, beta)
    np.testing.assert_allclose(step.sum(axis=1), 1.0, rtol=1e-12)
    assert step.data.min() >= 0
    scores = np.random.default_rng(seed).random((2, height, width)).astype(np.float32)
    walked = random_walk(scores, affinity, radius, beta=beta, log_steps=3)
    assert walked.min() >= scores.min() - 1e-6
    assert walked.max() <= scores.max() + 1e-6


def test_scores_fill_their_object_and_stay_in_it() -> None:
    features = torch.zeros(1, 1, 8, 12)
    features[..., :6] = 8.0
    affinity = pair_affinities(features, 3)[0].numpy()
    scores = np.zeros((1, 8, 12), np.float32)
    scores[0, 4, 2] = 1.0
    walked = random_walk(scores, affinity, 3, log_steps=6)[0]
    assert walked[:, :6].min() > 0.5 / 48
    assert walked[:, 6:].max() < 1e-6


@pytest.mark.parametrize(
    ("scores", "affinity", "message"),
    [
        (np.zeros((1, 3, 3), np.float32), np.zeros((9, 3, 3), np.float32), "axis D"),
        (np.zeros((1, 3, 4), np.float32), np.zeros((4, 3, 3), np.float32), "axis w"),
        (np.full((1, 3, 3), np.nan, np.float32), np.zeros((4, 3, 3), np.float32), "NaN"),
        (np.zeros((1, 3, 3), np.float32), np.full((4, 3, 3), 2, np.float32), r"0\.\.1"),
    ],
)
def test_what_does_not_fit_is_refused(
    scores: np.ndarray, affinity: np.ndarray, message: str
) -> None:
    radius = 2
    affinity = affinity if len(affinity) == 9 else affinity[: len(directions(radius))]
    with pytest.raises(ValueError, match=message):
        random_walk(scores, affinity, radius)


def test_pooling_averages_cells_of_any_size() -> None:
    plane = np.arange(12, dtype=np.float32).reshape(1, 2, 6)
    np.testing.assert_allclose(averaged(plane, 1, 3), [[[3.5, 5.5, 7.5]]])
    # a cell of 1.5 px takes half of the pixel between
    row = np.array([[[0.0, 3.0, 6.0]]], np.float32)
    np.testing.assert_allclose(averaged(row, 1, 2), [[[1.0, 5.0]]])
    same = np.random.default_rng(0).random((3, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(averaged(same, 5, 7), same, rtol=1e-6)
