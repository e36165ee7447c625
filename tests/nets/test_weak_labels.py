"""The choice of the classes that can matter, in torch: that of `merge_weak_labels`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latticecrf import CrfParameters, merge_weak_labels
from latticecrf.mean_field.merging import mergeable_share
from pmm_ray.nets.weak_labels import split_scores
from pmm_ray.runtime.core.errors import RowError

SEGMENTATION = CrfParameters.segmentation()
# a weak CRF may merge labels that are the strongest somewhere: those must be told apart
FAINT = CrfParameters(0, 1.0, 0.0, 67.0, 3.0, 0.03)


def network_scores(classes: int, seed: int) -> NDArray[np.float32]:
    """Some classes that matter, and a tail of all sizes."""
    draw = np.random.default_rng(seed)
    height, width = draw.integers(3, 40, 2)
    heights = -np.abs(draw.normal(0, 6, (classes, 1, 1)))
    scores = np.exp(draw.normal(0, draw.uniform(0.1, 3), (classes, height, width)) + heights)
    return np.asarray(scores / scores.sum(0), np.float32)


@pytest.mark.parametrize("parameters", [SEGMENTATION, FAINT])
@pytest.mark.parametrize("seed", range(12))
def test_the_same_classes_and_the_same_planes(parameters: CrfParameters, seed: int) -> None:
    scores = network_scores([2, 5, 21, 81][seed % 4], seed)
    if seed >= 8:
        scores = scores[: max(1, len(scores) // 3)]  # those that the image's labels allow
    kept, planes = merge_weak_labels(scores, parameters)
    found, sent = split_scores(torch.tensor(scores), mergeable_share(parameters)).fetch()
    assert found.tolist() == kept.tolist()
    assert sent.dtype == np.float16
    np.testing.assert_array_equal(sent[: len(kept)], planes[: len(kept)].astype(np.float16))
    # torch adds in float64 here: the sum of the others is at most a step of float16 away
    np.testing.assert_allclose(sent, planes.astype(np.float16), rtol=1e-3, atol=6e-8)


def test_some_of_these_scores_are_merged_and_some_are_not() -> None:
    lengths = {
        len(merge_weak_labels(network_scores(21, seed), parameters)[0])
        for seed in range(2, 12, 4)
        for parameters in (SEGMENTATION, FAINT)
    }
    assert min(lengths) < 19
    assert len(lengths) > 2


def test_scores_that_are_not_finite_are_an_error_row() -> None:
    scores = torch.tensor(network_scores(21, 0))
    scores[3, 1, 1] = torch.nan
    with pytest.raises(RowError, match="not finite"):
        split_scores(scores, mergeable_share(SEGMENTATION)).fetch()
