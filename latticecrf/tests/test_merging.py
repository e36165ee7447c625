"""Weak labels of a joint problem, added up to one: the same posteriors for all the others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from latticecrf import CrfParameters, DenseCrf, merge_weak_labels

SEGMENTATION = CrfParameters.segmentation()


def softmax_scores(labels: int, strong: list[int], seed: int) -> npt.NDArray[np.float32]:
    """What a network says of an image with a few classes: all others are next to nothing."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-12, 0.3, (labels, 40, 50))
    coarse = np.abs(rng.normal(0, 3, (len(strong), 5, 5)))
    logits[strong] = coarse.repeat(8, 1).repeat(10, 2)
    exp = np.exp(logits - logits.max(0))
    return (exp / exp.sum(0)).astype(np.float32)


@pytest.mark.parametrize("backend", ["lattice", "pydensecrf"])
@pytest.mark.parametrize(("labels", "strong"), [(21, [0, 4, 9]), (81, [0, 1, 30, 80])])
def test_posteriors_do_not_depend_on_merging(backend: str, labels: int, strong: list[int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    scores = softmax_scores(labels, strong, seed=labels)
    kept, planes = merge_weak_labels(scores, SEGMENTATION)
    assert planes.shape == (len(kept) + 1, 40, 50)
    assert kept.tolist() == strong
    crf = DenseCrf(image, SEGMENTATION, backend)  # type: ignore[arg-type]
    full = crf.joint(scores)
    merged = crf.joint(planes)[: len(kept)]
    # the budget of 5e-4 of merging, and that of the engine, which settles labels by itself
    np.testing.assert_allclose(merged, full[kept], atol=1e-3)
    np.testing.assert_array_equal(kept[merged.argmax(0)], full.argmax(0))


def test_what_is_merged_is_the_sum_and_never_the_strongest() -> None:
    scores = softmax_scores(12, [2, 5], seed=3)
    scores[7, 0, 0] = 0.02  # far from winning, but enough to send a message
    kept, planes = merge_weak_labels(scores, SEGMENTATION)
    assert kept.tolist() == [2, 5, 7]
    rest = np.delete(scores, kept, axis=0)
    np.testing.assert_allclose(planes[-1], np.clip(rest, 1e-5, 1).sum(0), rtol=1e-5)
    assert set(np.unique(scores.argmax(0))) <= set(kept.tolist())


def test_labels_that_may_matter_together_are_not_all_merged() -> None:
    # each alone is weak enough; ten of them at one pixel are not
    scores = np.full((12, 20, 20), 1e-5, np.float32)
    scores[0] = 1.0
    scores[1:11, 5, 5] = 0.002
    kept, planes = merge_weak_labels(scores, SEGMENTATION)
    assert 0 in kept
    assert 2 < len(kept) < 12
    share = planes[-1] / planes.sum(0)
    assert 0 < share.max() < 0.006


def test_a_network_that_cannot_decide_keeps_every_label() -> None:
    scores = np.full((30, 6, 5), 1 / 30, np.float32)
    scores += np.eye(30, dtype=np.float32).reshape(30, 6, 5) / 100  # each is the strongest once
    for parameters in (SEGMENTATION, CrfParameters(0, 1.0, 0.0, 67.0, 3.0, 0.0)):
        kept, planes = merge_weak_labels(scores, parameters)
        assert kept.tolist() == list(range(30))
        np.testing.assert_array_equal(planes, scores)


def test_one_weak_label_stays_and_none_is_refused() -> None:
    scores = np.stack([np.ones((3, 3)), np.zeros((3, 3))]).astype(np.float32)
    assert merge_weak_labels(scores, SEGMENTATION)[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="no label"):
        merge_weak_labels(scores[:0], SEGMENTATION)
