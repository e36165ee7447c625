"""The classifier's augmentation: what is cut, mirrored, padded and coloured."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pmm_ray.runtime.rows.photographs import with_long_side
from pmm_ray.runtime.training.augment import augment, jitter

HALF = (0.5, 0.5, 0.5)


def view(image: NDArray[np.uint8], seed: int, **changes: Any) -> NDArray[Any]:
    options: dict[str, Any] = {"resize_long": (40, 40), "crop_size": 32, "color_jitter": 0.0}
    options |= {"mean": HALF, "std": HALF, **changes}
    return augment(image, np.random.default_rng(seed), **options)


def gradient(height: int, width: int) -> NDArray[np.uint8]:
    """Red grows to the right, green grows downwards: every place has its own colour."""
    image = np.full((height, width, 3), 100, np.uint8)
    image[..., 0] = 20 + 4 * np.arange(width)
    image[..., 1] = 20 + 4 * np.arange(height)[:, None]
    return image


def to_bytes(view_3SS: NDArray[Any]) -> NDArray[np.uint8]:
    return np.rint((view_3SS.transpose(1, 2, 0) * 0.5 + 0.5) * 255).astype(np.uint8)


def test_a_crop_is_a_window_of_the_image_mirrored_half_of_the_time() -> None:
    image = gradient(40, 40)
    mirrored, corners = 0, set()
    for seed in range(200):
        crop = to_bytes(view(image, seed))
        flip = crop[0, 0, 0] > crop[0, -1, 0]
        mirrored += int(flip)
        if flip:
            crop = crop[:, ::-1]
        left, top = (int(crop[0, 0, 0]) - 20) // 4, (int(crop[0, 0, 1]) - 20) // 4
        corners.add((top, left))
        assert np.array_equal(crop, image[top : top + 32, left : left + 32])
    assert 70 <= mirrored <= 130
    # every offset 0..8 occurs on both axes
    assert {top for top, _ in corners} == {left for _, left in corners} == set(range(9))


def test_a_smaller_image_is_pasted_whole_into_zeros_at_any_place() -> None:
    image = np.full((12, 20, 3), 255, np.uint8)
    tops, lefts = set(), set()
    for seed in range(200):
        out = view(image, seed, resize_long=(20, 20))
        rows, columns = np.nonzero(out[0])
        tops.add(rows.min())
        lefts.add(columns.min())
        assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (12, 20)
        assert np.count_nonzero(out) == 3 * 12 * 20
        assert np.all(out[out != 0] == 1)
    assert tops == set(range(32 - 12 + 1))
    assert lefts == set(range(32 - 20 + 1))


def test_the_long_side_is_drawn_from_the_closed_range() -> None:
    image = np.full((30, 60, 3), 255, np.uint8)
    widths = set()
    for seed in range(80):
        out = view(image, seed, resize_long=(20, 23))
        widths.add(int(np.any(out[0] != 0, axis=0).sum()))
    assert widths == {20, 21, 22, 23}


def test_values_are_normalised_per_channel() -> None:
    image = np.broadcast_to(np.array([0, 51, 255], np.uint8), (40, 40, 3)).copy()
    out = view(image, 0, mean=(0.1, 0.2, 0.4), std=(0.5, 0.25, 0.2))
    assert out[:, 5, 5] == pytest.approx([-0.2, 0.0, 3.0], abs=1e-6)


def test_resizing_keeps_the_aspect_and_never_loses_a_side() -> None:
    for shape, long_side, want in [
        ((100, 50), 40, (40, 20)),
        ((3, 900), 90, (1, 90)),
        ((1, 1), 64, (64, 64)),
    ]:
        assert with_long_side(np.zeros((*shape, 3), np.uint8), long_side).shape[:2] == want


def test_the_strength_bounds_the_jitter() -> None:
    grey = np.full((4, 4, 3), 0.4, np.float32)
    means = [float(jitter(grey, np.random.default_rng(s), 0.3).mean()) for s in range(200)]
    # on a flat grey image only brightness shows: a factor of 1 +- 0.3
    assert 0.7 * 0.4 - 1e-5 <= min(means) < 0.75 * 0.4
    assert 1.25 * 0.4 < max(means) <= 1.3 * 0.4 + 1e-5


def test_the_hue_turns_by_at_most_a_third_of_the_strength() -> None:
    red = np.zeros((2, 2, 3), np.float32)
    red[..., 0], red[..., 1:] = 0.5, 0.3  # no change clips it, which would turn its hue
    turns = []
    for seed in range(200):
        out = jitter(red, np.random.default_rng(seed), 0.3)
        assert out.min() >= 0
        assert out.max() <= 1
        hue = float(cv2.cvtColor(out, cv2.COLOR_RGB2HSV)[0, 0, 0])
        turns.append((hue + 180) % 360 - 180)
    assert -36.1 <= min(turns) < -30
    assert 30 < max(turns) <= 36.1
