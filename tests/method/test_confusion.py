"""Confusion matrices and IoU: by hand, and against torchmetrics."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from pmm_ray.method.confusion import (
    confusion_matrix,
    count_pairs,
    from_sparse,
    iou,
    mean_iou,
    to_sparse,
)


def test_by_hand_with_an_absent_and_a_missed_class() -> None:
    truth = np.array([[0, 0, 1], [1, 3, 255]], np.uint8)
    prediction = np.array([[0, 1, 1], [1, 0, 2]], np.uint8)
    confusion = confusion_matrix(truth, prediction, num_classes=4, ignore=255)
    expected = np.zeros((4, 4), np.int64)
    expected[0, 0], expected[0, 1], expected[1, 1], expected[3, 0] = 1, 1, 2, 1
    np.testing.assert_array_equal(confusion, expected)
    # Class 2 has no ground truth and is left out; class 3 has some, all missed, and counts as 0.
    np.testing.assert_allclose(iou(confusion), [1 / 3, 2 / 3, np.nan, 0.0])
    mean, excluded = mean_iou(confusion)
    assert mean == pytest.approx(1 / 3)
    assert excluded == [2]


def test_a_class_only_predicted_is_absent_but_costs_the_others() -> None:
    truth = np.zeros(4, np.uint8)
    prediction = np.array([0, 0, 1, 1], np.uint8)
    confusion = confusion_matrix(truth, prediction, 2, ignore=255)
    np.testing.assert_allclose(iou(confusion), [0.5, np.nan])


def test_everything_ignored_gives_nan_and_excludes_all() -> None:
    truth = np.full((2, 2), 255, np.uint8)
    mean, excluded = mean_iou(confusion_matrix(truth, truth, 3, ignore=255))
    assert np.isnan(mean)
    assert excluded == [0, 1, 2]


def test_equals_torchmetrics() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 6, (40, 50)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    prediction = rng.integers(0, 6, truth.shape).astype(np.uint8)
    ours = confusion_matrix(truth, prediction, 6, ignore=255)

    target = torch.from_numpy(truth.astype(np.int64))
    guess = torch.from_numpy(prediction.astype(np.int64))
    theirs = MulticlassConfusionMatrix(6, ignore_index=255)(guess, target)
    np.testing.assert_array_equal(ours, theirs.numpy())
    jaccard = MulticlassJaccardIndex(6, average="none", ignore_index=255)(guess, target)
    np.testing.assert_allclose(iou(ours), jaccard.numpy(), rtol=1e-6)


def test_merging_images_is_exact_in_any_order() -> None:
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 5, (2, 9, 7)).astype(np.uint8) for _ in range(4)]
    whole = confusion_matrix(
        np.concatenate([i[0] for i in images]), np.concatenate([i[1] for i in images]), 5, 255
    )
    parts = [confusion_matrix(truth, prediction, 5, 255) for truth, prediction in images]
    np.testing.assert_array_equal(sum(reversed(parts)), whole)
    sparse = [to_sparse(part) for part in parts]
    merged = from_sparse(
        np.concatenate([s[0] for s in sparse]), np.concatenate([s[1] for s in sparse]), 5
    )
    np.testing.assert_array_equal(merged, whole)


def test_sparse_form_has_the_documented_types() -> None:
    confusion = np.zeros((91, 91), np.int64)
    confusion[90, 90] = 2**40
    indices, counts = to_sparse(confusion)
    assert (indices.dtype, counts.dtype) == (np.int32, np.int64)
    np.testing.assert_array_equal(indices, [91 * 91 - 1])
    np.testing.assert_array_equal(from_sparse(indices, counts, 91), confusion)


def test_sixteen_bit_masks() -> None:
    truth = np.array([300, 65535], np.uint16)
    confusion = confusion_matrix(truth, np.array([300, 1], np.uint16), 301, ignore=65535)
    assert confusion[300, 300] == 1
    assert confusion.sum() == 1


def test_callers_mistakes() -> None:
    mask = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="axis"):
        confusion_matrix(mask, np.zeros((2, 3), np.uint8), 2, 255)
    with pytest.raises(ValueError, match="dtype"):
        confusion_matrix(mask, np.zeros((2, 2)), 2, 255)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"prediction holds class ids 0\.\.9"):
        confusion_matrix(mask, np.array([[0, 9], [0, 0]], np.uint8), 2, 255)
    with pytest.raises(ValueError, match="num_classes"):
        confusion_matrix(mask, mask, 0, 255)
    with pytest.raises(ValueError, match="square"):
        iou(np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match="indices"):
        from_sparse(np.array([9], np.int32), np.array([1], np.int64), 2)


@pytest.mark.parametrize("types", [(np.uint8, np.uint8), (np.uint16, np.uint8), (np.int64,) * 2])
def test_pairs_of_values_are_counted_whatever_they_mean(types: tuple[Any, Any]) -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 3, 90, 255], (7, 9)).astype(types[0])
    mask = rng.choice([0, 3, 200, 255], (7, 9)).astype(types[1])
    true, predicted, counts = (column.tolist() for column in count_pairs(truth, mask))
    found = dict(zip(zip(true, predicted, strict=True), counts, strict=True))
    assert found == Counter(zip(truth.ravel().tolist(), mask.ravel().tolist(), strict=True))
    with pytest.raises(ValueError, match="65535"):
        count_pairs(truth.astype(np.int64) - 1, mask)
    with pytest.raises(ValueError, match="expected"):
        count_pairs(truth, mask[:-1])
