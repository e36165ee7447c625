"""Pseudo-masks: the released semantics by hand, edge cases, and the oracle masks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from latticecrf import CrfParameters
from pmm_ray.method.mask_methods import MASK_METHODS
from pmm_ray.method.masks import (
    MaskParameters,
    argmax_masks,
    background_score,
    base_mask,
    exponent_of,
    proportional_masks,
)

if TYPE_CHECKING:
    from conftest import Oracle

BACKENDS = ["lattice", "pydensecrf"]
# No iterations: the posterior is the normalized score, so results can be worked out by hand.
STILL = replace(CrfParameters.ppmg(), iterations=0)
BY_HAND = MaskParameters(alpha=1.0, smoothing=0.0, crf=STILL)
GREY_1x4 = np.full((1, 4, 3), 128, np.uint8)


def test_background_score_by_hand() -> None:
    cam_KHW = np.array([[[0.0, 0.5]], [[0.2, 1.0]]], np.float32)
    np.testing.assert_allclose(background_score(cam_KHW, 2.0), [[0.64, 0.0]], rtol=1e-5)
    np.testing.assert_array_equal(background_score(np.empty((0, 1, 2), np.float32), 2.0), [[1, 1]])


def test_overlap_goes_to_the_larger_proportion_of_its_class() -> None:
    # Class 7 is large and strong, class 3 small and weaker; pixel 3 is foreground of both:
    # 0.9 / (1 + 3.6) < 0.8 / (1 + 0.8), though 0.9 > 0.8.
    cam_KHW = np.array([[[0.9, 0.9, 0.9, 0.9]], [[0.0, 0.0, 0.0, 0.8]]], np.float32)
    mask_HW = proportional_masks(GREY_1x4, cam_KHW, [7, 3], [BY_HAND])[0]
    np.testing.assert_array_equal(mask_HW, [[7, 7, 7, 3]])
    assert mask_HW.dtype == np.uint8


def test_a_tie_goes_to_the_lowest_id_whatever_the_order_of_rows() -> None:
    cam_KHW = np.full((2, 1, 4), 0.9, np.float32)
    assert (proportional_masks(GREY_1x4, cam_KHW, [9, 2], [BY_HAND])[0] == 2).all()
    assert (proportional_masks(GREY_1x4, cam_KHW, [2, 9], [BY_HAND])[0] == 2).all()


def test_a_posterior_of_exactly_one_half_is_background() -> None:
    cam_KHW = np.array([[[0.5, 0.75, 0.25, 0.0]]], np.float32)
    np.testing.assert_array_equal(
        proportional_masks(GREY_1x4, cam_KHW, [1], [BY_HAND])[0], [[0, 1, 0, 0]]
    )


def test_literal_paper_variant_uses_its_own_threshold_and_denominator() -> None:
    paper = replace(MaskParameters.paper(), alpha=1.0, smoothing=0.0, crf=STILL)
    cam_KHW = np.array([[[0.5, 0.75, 0.04, 0.0]]], np.float32)
    np.testing.assert_array_equal(
        proportional_masks(GREY_1x4, cam_KHW, [1], [paper])[0], [[1, 1, 0, 0]]
    )
    # Without the +1 a class of one pixel always has proportion 1 there.
    overlap_KHW = np.array([[[0.9, 0.9, 0.9, 0.9]], [[0.0, 0.0, 0.0, 0.2]]], np.float32)
    assert proportional_masks(GREY_1x4, overlap_KHW, [7, 3], [paper])[0][0, 3] == 3


def test_argmax_without_crf_by_hand() -> None:
    cam_KHW = np.array([[[0.4, 0.6, 0.6, 0.0]], [[0.3, 0.7, 0.6, 0.0]]], np.float32)
    mask_HW = argmax_masks(GREY_1x4, cam_KHW, [5, 2], [BY_HAND], use_crf=False)[0]
    # Backgrounds 0.6, 0.3, 0.4, 1.0; the tie at pixel 2 goes to the lower id.
    np.testing.assert_array_equal(mask_HW, [[0, 2, 2, 0]])


def test_base_mask_keeps_only_confident_pixels() -> None:
    cam_KHW = np.array([[[1.0, 0.98, 0.5, 0.0]], [[0.0, 0.0, 0.5, 0.0]]], np.float32)
    mask_HW = base_mask(GREY_1x4, cam_KHW, [4, 6], threshold=0.9, crf=STILL)
    np.testing.assert_array_equal(mask_HW, [[4, 4, 0, 0]])
    with pytest.raises(ValueError, match="threshold"):
        base_mask(GREY_1x4, cam_KHW, [4, 6], threshold=0.4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [proportional_masks, argmax_masks])
def test_no_classes_and_empty_cams_give_background(make: Any, backend: Any) -> None:
    image_HW3 = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    [nothing] = make(image_HW3, np.empty((0, 9, 11), np.float32), [], [MaskParameters()], backend)
    assert nothing.shape == (9, 11)
    assert nothing.dtype == np.uint8
    assert not nothing.any()
    [zero] = make(image_HW3, np.zeros((2, 9, 11), np.float16), [1, 2], [MaskParameters()], backend)
    assert not zero.any()
    assert not base_mask(image_HW3, np.zeros((2, 9, 11)), [1, 2], backend=backend).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_pixel_image(backend: Any) -> None:
    image_HW3 = np.zeros((1, 1, 3), np.uint8)
    cam_KHW = np.ones((1, 1, 1), np.float32)
    assert proportional_masks(image_HW3, cam_KHW, [20], [MaskParameters()], backend)[0][0, 0] == 20


def test_ids_over_254_need_sixteen_bits() -> None:
    cam_KHW = np.full((2, 1, 4), 0.9, np.float32)
    mask_HW = proportional_masks(GREY_1x4, cam_KHW[:1], [300], [BY_HAND])[0]
    assert mask_HW.dtype == np.uint16
    assert (mask_HW == 300).all()
    assert argmax_masks(GREY_1x4, cam_KHW, [254, 1], [BY_HAND])[0].dtype == np.uint8


@pytest.mark.parametrize(
    ("cam", "labels", "message"),
    [
        (np.zeros((1, 1, 3)), [1], "axis W"),
        (np.full((1, 1, 4), np.nan), [1], "NaN"),
        (np.full((1, 1, 4), -np.inf), [1], "infinite"),
        (np.zeros((2, 1, 4)), [1], "axis K"),
        (np.zeros((2, 1, 4)), [1, 1], "repeat"),
        (np.zeros((1, 1, 4)), [0], "1..65534"),
        (np.zeros((1, 1, 4)), [1.5], "dtype"),
    ],
)
def test_callers_mistakes(cam: Any, labels: Any, message: str) -> None:
    for make in (proportional_masks, argmax_masks):
        with pytest.raises(ValueError, match=message):
            make(GREY_1x4, cam, labels, [BY_HAND])


def test_bad_images_and_parameters() -> None:
    cam_KHW = np.zeros((1, 1, 4))
    for image in (GREY_1x4.astype(np.float32), GREY_1x4[..., 0], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="image_HW3"):
            proportional_masks(image, cam_KHW, [1], [BY_HAND])[0]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha"):
        MaskParameters(alpha=0.0)
    with pytest.raises(ValueError, match="foreground_threshold"):
        MaskParameters(foreground_threshold=2.0)


def _equal_share(oracle: Oracle, ids: list[str], backend: Any) -> tuple[float, float]:
    pixels = smoothed = unsmoothed = 0
    for image_id in ids:
        one = oracle.load(image_id)
        pixels += one.mask.size
        for smoothing, truth_HW in ((0.3, one.mask), (0.0, one.mask_without_smoothing)):
            mask_HW = proportional_masks(
                one.image,
                one.cam,
                one.labels,
                [MaskParameters(alpha=11, smoothing=smoothing, crf=CrfParameters.ppmg())],
                backend,
            )[0]
            equal = int((mask_HW == truth_HW).sum())
            if smoothing:
                smoothed += equal
            else:
                unsmoothed += equal
    return smoothed / pixels, unsmoothed / pixels


@pytest.mark.parametrize("backend", BACKENDS)
def test_oracle_masks_of_some_photographs(oracle: Oracle, backend: Any) -> None:
    assert min(_equal_share(oracle, oracle.ids()[::30], backend)) >= 0.9999


@pytest.mark.slow
@pytest.mark.timeout(1800)  # pydensecrf alone takes minutes
@pytest.mark.parametrize("backend", BACKENDS)
def test_oracle_masks_of_all_photographs(oracle: Oracle, backend: Any) -> None:
    assert min(_equal_share(oracle, oracle.ids(), backend)) >= 0.9999


@pytest.mark.parametrize("threshold", [0.02, 0.06, 0.19, 0.5, 0.6])
def test_an_exponent_is_a_threshold_of_the_argmax(threshold: float) -> None:
    cam = np.linspace(0, 1, 1001, dtype=np.float32).reshape(1, 1, -1)
    image = np.zeros((1, 1001, 3), np.uint8)
    [mask] = MASK_METHODS["cam_argmax"].load()(
        image, cam, [1], [MaskParameters(alpha=exponent_of(threshold))]
    )
    clear = np.abs(cam[0, 0] - threshold) > 1e-4  # a tie is decided by rounding
    np.testing.assert_array_equal((mask[0] == 1)[clear], (cam[0, 0] > threshold)[clear])
    with pytest.raises(ValueError, match="threshold"):
        exponent_of(1.0)
