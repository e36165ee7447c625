"""`latticecrf.pydensecrf.utils` beside `pydensecrf.utils`: the same numbers, shapes and types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticecrf.pydensecrf import utils as ours

theirs = pytest.importorskip("pydensecrf.utils", reason="pydensecrf2 is not installed")

BUDGET = settings(max_examples=60, deadline=None, derandomize=True)
SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3)
SEEDS = st.integers(0, 1000)


def assert_equal(mine: Any, truth: Any) -> None:
    assert mine.dtype == truth.dtype
    assert mine.shape == truth.shape
    assert mine.flags.c_contiguous
    np.testing.assert_allclose(mine, truth, rtol=2e-7, atol=1e-7)


@BUDGET
@given(SHAPES, st.integers(1, 5), SEEDS, st.data())
def test_energies_of_scores(shape: list[int], labels: int, seed: int, data: Any) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((labels, *shape)) * rng.integers(0, 2, (labels, *shape))
    scores = scores.astype(data.draw(st.sampled_from([np.float32, np.float64])))
    options = data.draw(
        st.sampled_from([{}, {"scale": 0.4}, {"scale": 1.0, "clip": 1e-3}, {"clip": 0.2}])
    )
    assert_equal(
        ours.unary_from_softmax(scores, **options), theirs.unary_from_softmax(scores, **options)
    )


@BUDGET
@given(SHAPES, st.integers(2, 5), st.sampled_from([0.5, 0.7, 0.99]), st.booleans(), SEEDS)
def test_energies_of_labels(
    shape: list[int], labels: int, sure: float, zero_unsure: bool, seed: int
) -> None:
    highest = labels + 1 if zero_unsure else labels
    which = np.random.default_rng(seed).integers(0, highest, shape)
    mine = ours.unary_from_labels(which, labels, sure, zero_unsure)
    assert_equal(mine, theirs.unary_from_labels(which, labels, sure, zero_unsure))
    # where pydensecrf's index wraps around
    small = ours.unary_from_labels(which.astype(np.uint8), labels, sure, zero_unsure)
    np.testing.assert_array_equal(small, mine)


@BUDGET
@given(SHAPES, SEEDS)
def test_features_of_places(shape: list[int], seed: int) -> None:
    sigmas = np.random.default_rng(seed).uniform(0.5, 80, len(shape)).tolist()
    mine = ours.create_pairwise_gaussian(sigmas, shape)
    assert_equal(mine, theirs.create_pairwise_gaussian(sigmas, shape))


@BUDGET
@given(st.lists(st.integers(1, 7), min_size=2, max_size=3), st.integers(0, 5), SEEDS)
def test_features_of_places_and_channels(shape: list[int], channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sigmas = rng.uniform(0.5, 80, len(shape)).tolist()
    if channels == 0:
        image, deviations, axis = rng.uniform(0, 255, shape), [float(rng.uniform(1, 9))], -1
    else:
        axis = int(rng.integers(0, len(shape) + 1))
        image = rng.uniform(0, 255, [*shape[:axis], channels, *shape[axis:]])
        deviations = rng.uniform(1, 9, channels).tolist()
    if seed % 2:
        image = image.astype(np.uint8)
    mine = ours.create_pairwise_bilateral(sigmas, deviations, image, axis)
    assert_equal(mine, theirs.create_pairwise_bilateral(sigmas, deviations, image, axis))


@pytest.mark.parametrize("sure", [0.7, 1])
def test_older_names(sure: float) -> None:
    scores = np.random.default_rng(0).dirichlet([1, 1, 1], 12).T.copy().reshape(3, 3, 4)
    scores[:, 0, 0] = 1, 0, 0
    mine = ours.softmax_to_unary(scores, GT_PROB=sure)
    with np.errstate(divide="ignore"):
        assert_equal(mine, theirs.softmax_to_unary(scores, GT_PROB=sure))
    labels = scores.argmax(axis=0) + 1
    if sure < 1:
        assert_equal(ours.compute_unary(labels, 3, sure), theirs.compute_unary(labels, 3, sure))
    assert_equal(ours.compute_unary(labels, 3), theirs.compute_unary(labels, 3))


@pytest.mark.parametrize("sigmas", [(3,), (3, 2)])
@pytest.mark.parametrize("deviations", [2, (2,), (2, 5), (2, 5, 7)])
def test_what_deviations_are_too_short_for_stays_as_it_is(
    sigmas: tuple[int, ...], deviations: int | tuple[int, ...]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    mine = ours.create_pairwise_bilateral(sigmas, deviations, image, 2)
    assert_equal(mine, theirs.create_pairwise_bilateral(sigmas, deviations, image, 2))
