"""Windows, their merging, and the relabel rule, against numbers worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pmm_ray.config import CropsConfig
from pmm_ray.method.multicrop import (
    Box,
    Geometry,
    WindowMerger,
    axis_windows,
    random_window,
    relabel,
    windows,
)

SCALES = CropsConfig().scales
GEOMETRIES: tuple[Geometry, ...] = ("paper", "released")


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_number_of_windows_is_the_released_code_s(geometry: Geometry) -> None:
    small = windows(375, 500, SCALES, geometry=geometry)
    assert [len(of_scale) for of_scale in small] == [1, 2, 4, 6, 6, 9, 12, 12, 15, 20]
    assert sum(len(of_scale) for of_scale in windows(480, 640, SCALES, geometry=geometry)) == 136


def test_windows_of_one_axis() -> None:
    assert axis_windows(300, 448, 300, "paper") == [(0, 300)]
    assert axis_windows(448, 448, 300, "released") == [(0, 448)]
    assert axis_windows(449, 448, 300, "paper") == [(0, 448), (1, 449)]
    assert axis_windows(449, 448, 300, "released") == [(0, 300), (1, 449)]
    assert axis_windows(1000, 448, 300, "paper") == [(0, 448), (300, 748), (552, 1000)]
    assert axis_windows(1000, 448, 300, "released") == [(0, 300), (300, 600), (552, 1000)]


def test_places_in_the_image() -> None:
    [[window, *_]] = windows(375, 500, [0.75])
    assert (window.scaled_height, window.scaled_width) == (281, 375)
    assert window.scaled == (0, 281, 0, 375)
    assert window.original == (0, 375, 0, 500)
    # released: 281 / 0.75 is truncated to 374, the last row is left out
    [[window]] = windows(375, 500, [0.75], geometry="released")
    assert window.original == (0, 374, 0, 500)
    [of_scale] = windows(375, 500, [1.5], geometry="released")
    # 562 x 750 px: columns outside, rows inside
    assert [w.scaled for w in of_scale] == [
        (0, 300, 0, 300),
        (114, 562, 0, 300),
        (0, 300, 300, 600),
        (114, 562, 300, 600),
        (0, 300, 302, 750),
        (114, 562, 302, 750),
    ]
    assert of_scale[-1].original == (76, 374, 201, 500)
    [of_scale] = windows(375, 500, [3.0])
    assert of_scale[0].original == (0, 150, 0, 150)
    assert of_scale[-1].original == (225, 375, 350, 500)
    [[tiny]] = windows(1, 1, [0.1])
    assert tiny.original == (0, 1, 0, 1)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (97, 1301), (448, 449), (3, 7)])
def test_paper_windows_cover_every_px_and_stay_inside(height: int, width: int) -> None:
    for of_scale in windows(height, width, SCALES):
        covered = np.zeros((height, width), bool)
        for window in of_scale:
            rows, columns = window.original.slices
            assert covered[rows, columns].shape == (window.original.height, window.original.width)
            assert window.scaled.height <= 448
            assert window.scaled.width <= 448
            covered[rows, columns] = True
        assert covered.all()


def test_merging_is_the_mean_over_what_covers_a_px() -> None:
    rng = np.random.default_rng(0)
    views = [
        (window.original, rng.random((2, window.original.height, window.original.width)))
        for of_scale in windows(60, 80, [1.0, 2.0], size=50, stride=30)
        for window in of_scale
    ]
    merger = WindowMerger(2, 60, 80)
    stacked = np.full((len(views), 2, 60, 80), np.nan)
    for i, (place, maps) in enumerate(views):
        merger.add(torch.from_numpy(maps), place)
        stacked[i][:, place.top : place.bottom, place.left : place.right] = maps
    np.testing.assert_allclose(merger.mean(), np.nanmean(stacked, axis=0), rtol=1e-6)
    assert merger.mean().dtype == torch.float32


def test_a_px_that_nothing_covers_is_zero() -> None:
    merger = WindowMerger(1, 2, 2)
    merger.add(torch.ones(1, 1, 2), Box(0, 1, 0, 2))
    assert merger.mean().tolist() == [[[1, 1], [0, 0]]]
    with pytest.raises(ValueError, match="do not fit"):
        merger.add(torch.ones(1, 2, 2), Box(0, 1, 0, 2))


def test_the_relabel_rule() -> None:
    base = np.zeros((20, 20), np.uint8)
    base[0:10, 0:10] = 3  # 100 px
    base[10:20, 0:20] = 7  # 200 px
    base[0, 19] = 5  # a single px
    assert relabel(base, Box(0, 20, 0, 20)) == [3, 5, 7]
    # 10 of 100 px of class 3 is not more than 10 %, and 10 of 100 px of the window is not either
    window = Box(0, 5, 8, 28)
    assert relabel(base[:, :20], Box(0, 5, 8, 20)) == [3, 5]  # 10 of 60 px of the window
    wide = np.pad(base, ((0, 0), (0, 20)))
    assert relabel(wide, window) == [5]
    # one px more: 11 % of the class
    wide[5, 12] = 0
    wide[0, 11] = 3
    assert relabel(wide, window, share=0.1) == [3, 5]
    # 2 of 200 px of class 7, but all of the window
    assert relabel(base, Box(12, 13, 4, 6)) == [7]
    assert relabel(base, Box(0, 10, 10, 19)) == []
    assert relabel(base, Box(0, 10, 9, 19), share=0.0) == [3]
    with pytest.raises(ValueError, match="outside a mask"):
        relabel(base, Box(0, 21, 0, 5))


def drawn(seed: int, base: Any) -> tuple[Box, list[int]]:
    choices = windows(60, 80, [1.0, 2.0, 3.0], size=50, stride=30)
    window, labels = random_window(choices, base, np.random.default_rng(seed))
    return window.original, labels


def test_drawing_is_seeded_and_looks_for_a_class() -> None:
    base = np.zeros((60, 80), np.uint8)
    base[50:60, 70:80] = 2
    assert [drawn(i, base) for i in range(9)] == [drawn(i, base) for i in range(9)]
    found = [drawn(i, base) for i in range(200)]
    scales = windows(60, 80, [1.0, 2.0, 3.0], size=50, stride=30)
    shows = [sum(relabel(base, w.original) == [2] for w in s) / len(s) for s in scales]
    # tries again where there is nothing, but only as often as the scale has windows
    want = np.mean([1 - (1 - p) ** len(s) for p, s in zip(shows, scales, strict=True)])
    once = np.mean(shows)
    assert sum(labels == [2] for _, labels in found) / 200 == pytest.approx(want, abs=0.1)
    assert once + 0.1 < want < 0.9
    assert all(labels in ([], [2]) for _, labels in found)
    assert len({place for place, _ in found}) > 3
    # nothing to find: any window, without labels
    places = {drawn(i, np.zeros((60, 80), np.uint8))[0] for i in range(1000)}
    assert len(places) == sum(len(s) for s in windows(60, 80, [1.0, 2.0, 3.0], size=50, stride=30))


def test_scales_are_drawn_alike_however_many_windows_they_have() -> None:
    choices = windows(60, 80, [1.0, 3.0], size=100, stride=30)
    assert [len(of_scale) for of_scale in choices] == [1, 24]
    base = np.ones((60, 80), np.uint8)
    draws = [random_window(choices, base, np.random.default_rng(i))[0].scale for i in range(400)]
    assert draws.count(1.0) == pytest.approx(200, abs=50)


def test_the_scale_stays_while_windows_are_drawn_again() -> None:
    """One of the 24 windows of scale 3 shows the class; scale 1 always does, and is not taken."""
    choices = windows(60, 80, [1.0, 3.0], size=100, stride=30)
    base = np.zeros((60, 80), np.uint8)
    base[:2, :2] = 4
    nothing = np.zeros_like(base)
    for seed in range(50):
        first, _ = random_window(choices, nothing, np.random.default_rng(seed))
        found, _ = random_window(choices, base, np.random.default_rng(seed))
        assert found.scale == first.scale


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: windows(0, 5, [1.0]), "no windows"),
        (lambda: windows(5, 5, []), "no windows"),
        (lambda: windows(5, 5, [0.0]), "scale"),
        (lambda: windows(5, 5, [1.0], size=10, stride=11), "do not fit"),
        (lambda: windows(5, 5, [1.0], geometry="other"), "unknown geometry"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
