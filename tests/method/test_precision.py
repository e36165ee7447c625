"""Average precision, by hand and by its definition."""

from __future__ import annotations

import numpy as np
import pytest

from pmm_ray.method.precision import average_precision


def test_the_precision_at_each_positive_is_averaged() -> None:
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    truth = np.array([[True], [False], [True], [False]])
    assert average_precision(scores, truth)[0] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_ties_count_as_one_group_whatever_their_order() -> None:
    scores = np.array([[0.5], [0.5], [0.9], [0.5]])
    truth = np.array([[True], [False], [False], [False]])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        assert average_precision(scores[order], truth[order])[0] == pytest.approx(1 / 4)


def test_a_class_without_positives_has_none() -> None:
    found = average_precision(np.array([[0.1, 0.2]]), np.array([[True, False]]))
    assert found[0] == 1
    assert np.isnan(found[1])


def test_the_definition_on_random_scores() -> None:
    draw = np.random.default_rng(0)
    scores, truth = draw.random((40, 5)), draw.random((40, 5)) < 0.3
    for c, found in enumerate(average_precision(scores, truth)):
        precisions = []
        for n in np.flatnonzero(truth[:, c]):
            above = scores[:, c] >= scores[n, c]
            precisions.append((above & truth[:, c]).sum() / above.sum())
        assert found == pytest.approx(np.mean(precisions))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="truth_NC"):
        average_precision(np.zeros((3, 2)), np.zeros((2, 2), bool))
