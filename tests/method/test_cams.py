"""Normalization and coefficient-of-variation smoothing."""

from __future__ import annotations

import numpy as np
import pytest

from pmm_ray.method.cams import coefficient_of_variation, normalize, smooth, upsample_cam


def test_normalize_paper_is_min_max_per_class() -> None:
    cam_KHW = np.array([[[2.0, 4.0], [3.0, 2.0]], [[-1.0, 0.0], [0.0, 1.0]]])
    expected = [[[0.0, 1.0], [0.5, 0.0]], [[0.0, 0.5], [0.5, 1.0]]]
    normal_KHW = normalize(cam_KHW)
    assert normal_KHW.dtype == np.float32
    np.testing.assert_allclose(normal_KHW, expected)


def test_normalize_released_variants_by_hand() -> None:
    cam_KHW = np.array([[[0.0, 0.5, 1.0]]])
    np.testing.assert_allclose(
        normalize(cam_KHW, "multi_crop"), [[[0.0, 0.5 / 1.00001, 1.0 / 1.00001]]], rtol=1e-6
    )
    np.testing.assert_allclose(
        normalize(cam_KHW, "multi_scale"),
        [[[0.0, 0.49999 / 1.00001, 0.99999 / 1.00001]]],
        rtol=1e-6,
    )
    below_zero = np.array([[[-5.0, 0.5, 1.0]]])
    np.testing.assert_array_equal(
        normalize(below_zero, "multi_scale"), normalize(cam_KHW, "multi_scale")
    )


@pytest.mark.parametrize("variant", ["paper", "multi_crop", "multi_scale"])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_normalize_of_a_constant_map_is_zero(variant: str, value: float) -> None:
    assert not normalize(np.full((2, 3, 4), value), variant).any()  # type: ignore[arg-type]


def test_the_lowest_of_negative_scores_are_zero() -> None:
    cam_KHW = np.array([[[-3.0, -1.0, 0.0, 2.0]], [[-1.0, -1.0, -1.0, -1.0]]])
    expected = [[[0.0, 0.4, 0.6, 1.0]], [[0.0, 0.0, 0.0, 0.0]]]
    np.testing.assert_allclose(normalize(cam_KHW, "multi_crop"), expected, rtol=1e-5)


@pytest.mark.parametrize("low", [0.0, 0.2])
def test_the_released_normalization_of_maps_above_zero_is_kept_to_the_bit(low: float) -> None:
    cam_KHW = np.random.default_rng(0).random((3, 20, 21)) + low
    cam_KHW[:, :5] = low
    for variant, offset in (("multi_crop", 0.0), ("multi_scale", 1e-5)):
        released = cam_KHW.copy()
        lowest, highest = (f(cam_KHW, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
        released[released < lowest + 1e-5] = 0
        released = (released - lowest - offset) / (highest - lowest + 1e-5)
        truth = np.clip(released, 0, 1).astype(np.float32)
        np.testing.assert_array_equal(normalize(cam_KHW, variant), truth)  # type: ignore[arg-type]


def test_normalize_stays_in_range_when_the_minimum_is_positive() -> None:
    cam_KHW = np.array([[[0.2, 0.6, 1.0]]])
    assert normalize(cam_KHW, "multi_crop").min() == 0.0


def test_coefficient_of_variation_by_hand() -> None:
    # 0.05 itself is not foreground: the comparison is strict.
    cam_KHW = np.array([[[0.05, 0.2, 0.4]], [[0.0, 0.0, 0.05]]])
    np.testing.assert_allclose(coefficient_of_variation(cam_KHW), [0.1 / 0.3, 0.0], rtol=1e-6)


def test_float16_statistics_do_not_overflow() -> None:
    # 375 x 500 pixels half covered: the sum of scores exceeds 65504, the largest float16.
    rng = np.random.default_rng(0)
    cam_KHW = np.zeros((1, 375, 500), np.float16)
    cam_KHW[0, :190] = rng.uniform(0.8, 1.0, (190, 500))
    wide = coefficient_of_variation(cam_KHW.astype(np.float64))
    assert np.isfinite(wide).all()
    np.testing.assert_allclose(coefficient_of_variation(cam_KHW), wide, rtol=1e-6)
    assert (smooth(cam_KHW) > 0).mean() == pytest.approx(190 / 375)


def test_smooth_released_drops_weak_scores_and_paper_amplifies_them() -> None:
    cam_KHW = np.array([[[0.04, 0.2, 0.4, 0.0]]])
    power = 1.0 - 0.3 * (0.1 / 0.3)
    np.testing.assert_allclose(smooth(cam_KHW), [[[0.0, 0.2**power, 0.4**power, 0.0]]], rtol=1e-5)
    literal = smooth(cam_KHW, zero_below_threshold=False)
    assert literal[0, 0, 0] == pytest.approx(0.04**power, rel=1e-5)
    assert literal[0, 0, 3] == 0.0


def test_smooth_keeps_a_score_at_the_threshold() -> None:
    assert smooth(np.full((1, 1, 1), 0.05, np.float32), threshold=0.05)[0, 0, 0] > 0.0


def test_smooth_without_smoothing_changes_nothing() -> None:
    cam_KHW = np.random.default_rng(1).random((2, 5, 6), np.float32)
    np.testing.assert_array_equal(smooth(cam_KHW, 0.0, zero_below_threshold=False), cam_KHW)


def test_smooth_with_a_huge_scale_stays_in_range() -> None:
    cam_KHW = np.array([[[0.0, 0.06, 1.0]]])
    result = smooth(cam_KHW, smoothing=100.0)
    np.testing.assert_array_equal(result, [[[0.0, 1.0, 1.0]]])


def test_upsample_clips_and_reaches_the_size() -> None:
    cam_KHW = upsample_cam(np.array([[[0.0, 1.5]]], np.float16), 3, 4)
    assert cam_KHW.shape == (1, 3, 4)
    assert cam_KHW.dtype == np.float32
    np.testing.assert_allclose(cam_KHW[0, 0], [0.0, 0.375, 1.0, 1.0])


def test_empty_cams_give_empty_results() -> None:
    empty = np.empty((0, 3, 4), np.float32)
    assert normalize(empty).shape == (0, 3, 4)
    assert coefficient_of_variation(empty).shape == (0,)
    assert smooth(empty).shape == (0, 3, 4)
    assert upsample_cam(empty, 7, 8).shape == (0, 7, 8)


@pytest.mark.parametrize(
    ("cam", "message"),
    [
        (np.zeros((3, 4)), "3 axes"),
        (np.zeros((1, 3, 4), np.int32), "dtype int32"),
        (np.full((1, 3, 4), np.nan), "NaN"),
        (np.full((1, 3, 4), np.inf), "infinite"),
        (np.full((1, 3, 4), 7.0), "normalize it"),
        ([[[0.0]]], "NumPy array"),
    ],
)
def test_smooth_refuses_what_is_not_a_normalized_cam(cam: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smooth(cam)  # type: ignore[arg-type]


def test_bad_parameters_are_refused() -> None:
    cam_KHW = np.zeros((1, 2, 2))
    with pytest.raises(ValueError, match="unknown normalization"):
        normalize(cam_KHW, "other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold"):
        coefficient_of_variation(cam_KHW, 2.0)
    with pytest.raises(ValueError, match="smoothing"):
        smooth(cam_KHW, -1.0)
    with pytest.raises(ValueError, match="cannot resize"):
        upsample_cam(cam_KHW, 0, 5)
