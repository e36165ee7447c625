"""Many mask parameters at once: the same masks as one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from latticecrf import CrfParameters
from pmm_ray.method.confusion import confusion_matrices, confusion_matrix
from pmm_ray.method.masks import (
    MaskParameters,
    argmax_masks,
    proportional_masks,
)

COMBINATIONS = [
    MaskParameters(alpha=alpha, smoothing=smoothing, threshold=threshold)
    for alpha in (1.0, 3.0, 11.0)
    for smoothing in (0.0, 0.3)
    for threshold in (0.05, 0.2)
]


def photograph(classes: int) -> tuple[Any, Any]:
    """A textured image, and a blurred blob for each class."""
    rng = np.random.default_rng(classes)
    y, x = np.mgrid[:47, :61]
    image = rng.integers(0, 90, (47, 61, 3)) + 120 * ((x > 25) & (y > 12))[..., None]
    centres = rng.uniform((5, 5), (42, 56), (classes, 2))
    cam = [np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 200) for cy, cx in centres]
    return image.astype(np.uint8), np.array(cam, np.float32).reshape(classes, 47, 61)


@pytest.mark.parametrize("backend", ["lattice", "pydensecrf"])
@pytest.mark.parametrize("classes", [1, 3])  # 12 and 36 CRF problems: one group, and several
def test_the_masks_of_many_are_the_masks_of_each(backend: Any, classes: int) -> None:
    image, cam = photograph(classes)
    labels = [7, 2, 5][:classes]
    masks = proportional_masks(image, cam, labels, COMBINATIONS, backend)
    assert len(masks) == len(COMBINATIONS)
    for mask, parameters in zip(masks, COMBINATIONS, strict=True):
        alone = proportional_masks(image, cam, labels, [parameters], backend)[0]
        np.testing.assert_array_equal(mask, alone)
        assert mask.dtype == alone.dtype
    assert len({mask.tobytes() for mask in masks}) > len(masks) // 2  # they do differ


@pytest.mark.parametrize("use_crf", [True, False])
def test_argmax_masks_of_many_are_those_of_each(use_crf: bool) -> None:
    image, cam = photograph(3)
    masks = argmax_masks(image, cam, [7, 2, 5], COMBINATIONS, use_crf=use_crf)
    for mask, parameters in zip(masks, COMBINATIONS, strict=True):
        alone = argmax_masks(image, cam, [7, 2, 5], [parameters], use_crf=use_crf)[0]
        np.testing.assert_array_equal(mask, alone)
    assert len({mask.tobytes() for mask in masks}) > len(masks) // 2
    none = argmax_masks(*photograph(0), [], COMBINATIONS[:2], use_crf=use_crf)
    assert [mask.any() for mask in none] == [False, False]
    other = replace(COMBINATIONS[0], crf=CrfParameters.segmentation())
    with pytest.raises(ValueError, match="share one set of CRF parameters"):
        argmax_masks(image, cam, [7, 2, 5], [COMBINATIONS[0], other])


def test_no_class_gives_as_many_empty_masks() -> None:
    image, cam = photograph(0)
    masks = proportional_masks(image, cam, [], COMBINATIONS)
    assert [mask.any() for mask in masks] == [False] * len(COMBINATIONS)


def test_another_lattice_is_refused() -> None:
    image, cam = photograph(1)
    other = replace(COMBINATIONS[0], crf=CrfParameters.segmentation())
    with pytest.raises(ValueError, match="share one set of CRF parameters"):
        proportional_masks(image, cam, [1], [COMBINATIONS[0], other])
    with pytest.raises(ValueError, match="share one set of CRF parameters"):
        proportional_masks(image, cam, [1], [])


@pytest.mark.parametrize("with_ignore", [False, True])
def test_many_confusion_matrices_are_each_ones(with_ignore: bool) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (9, 7), np.uint8)
    if with_ignore:
        truth[2:4] = 255
    predictions = [rng.integers(0, 4, (9, 7), np.uint8) for _ in range(3)]
    for matrix, prediction in zip(
        confusion_matrices(truth, predictions, 4, 255), predictions, strict=True
    ):
        np.testing.assert_array_equal(matrix, confusion_matrix(truth, prediction, 4, 255))
        assert matrix.sum() == (truth != 255).sum()
    with pytest.raises(ValueError, match="prediction holds class ids"):
        confusion_matrices(truth, [predictions[0], predictions[1] + 2], 4, 255)
