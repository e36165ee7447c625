"""The lattice filter against an exact Gaussian, and its fallback for keys of any size."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from latticecrf import CrfParameters, DenseCrf
from latticecrf.lattice import placing, wide
from latticecrf.lattice.features import color_features, grid_features, point_features
from latticecrf.lattice.hashing import known, new_table, number, roomy
from latticecrf.lattice.lattice import build_lattice, in_own_order
from latticecrf.lattice.spatial import spatial_lattice


def photograph(height: int, width: int, seed: int = 0) -> Any:
    """Two flat regions with noise."""
    rng = np.random.default_rng(seed)
    image_HW3 = rng.normal(0, 8, (height, width, 3))
    image_HW3[:, : width // 2] += [60, 90, 120]
    image_HW3[:, width // 2 :] += [150, 120, 60]
    return np.clip(image_HW3, 0, 255).astype(np.uint8)


def filtered(
    image_HW3: Any, sigma: float, color_sigma: float | None, signal_NL: Any, **options: int
) -> Any:
    """Filter L channels, given and returned in raster order."""
    pixels, lanes = signal_NL.shape
    places = np.arange(pixels, dtype=np.int32)
    features = grid_features(*image_HW3.shape[:2], (sigma, sigma))
    if color_sigma is not None:
        features = color_features(image_HW3, (sigma, sigma), (color_sigma,) * 3)
    built = build_lattice(features, places, **options)
    # Whatever was in the working memory must not matter.
    scratch = np.full(built.rows * lanes, np.nan, np.float32)
    rows, target = signal_NL.astype(np.float32).ravel(), np.empty(pixels * lanes, np.float32)
    built.filter_apart(lanes, rows, 1.0, scratch, target)
    result_NL = np.empty((pixels, lanes), np.float32)
    result_NL[built.link] = target.reshape(pixels, lanes)
    return result_NL, built


def exact(image_HW3: Any, sigma: float, color_sigma: float | None, signal_NL: Any) -> Any:
    """The same by O(N^2) arithmetic: D^-1/2 K D^-1/2 with K = exp(-distance^2 / 2)."""
    height, width = image_HW3.shape[:2]
    y, x = np.mgrid[:height, :width]
    features = [x.ravel() / sigma, y.ravel() / sigma]
    if color_sigma is not None:
        features += list(image_HW3.reshape(-1, 3).T.astype(np.float64) / color_sigma)
    features_NF = np.stack(features, axis=1)
    distance_NN = ((features_NF[:, None] - features_NF[None]) ** 2).sum(axis=2)
    kernel_NN = np.exp(-distance_NN / 2)
    root_N = 1 / np.sqrt(kernel_NN.sum(axis=1))
    return root_N[:, None] * (kernel_NN @ (root_N[:, None] * signal_NL))


@pytest.mark.parametrize(
    ("sigma", "color_sigma", "correlation"),
    [(3.0, None, 0.99), (6.0, None, 0.99), (80.0, 13.0, 0.97), (20.0, 30.0, 0.95)],
)
def test_the_filter_approximates_the_gaussian(
    sigma: float, color_sigma: float | None, correlation: float
) -> None:
    image_HW3 = photograph(24, 31)
    y, x = np.mgrid[:24, :31]
    signal_NL = np.stack([(x > 12).ravel(), ((x - 15) ** 2 + (y - 12) ** 2 < 60).ravel()], axis=1)
    ours_NL, _ = filtered(image_HW3, sigma, color_sigma, signal_NL)
    true_NL = exact(image_HW3, sigma, color_sigma, signal_NL)
    for channel in range(2):
        measured = np.corrcoef(ours_NL[:, channel], true_NL[:, channel])[0, 1]
        assert measured >= correlation
        assert ours_NL[:, channel].mean() == pytest.approx(true_NL[:, channel].mean(), rel=0.05)


def test_the_filter_is_linear_and_symmetric() -> None:
    # <a, F b> = <F a, b> up to the order of the blur's axes.
    rng = np.random.default_rng(1)
    a_NL, b_NL = rng.random((2, 15 * 17, 1))
    image_HW3 = photograph(15, 17)
    fa_NL, _ = filtered(image_HW3, 3.0, None, a_NL)
    fb_NL, _ = filtered(image_HW3, 3.0, None, b_NL)
    sum_NL, _ = filtered(image_HW3, 3.0, None, a_NL + b_NL)
    np.testing.assert_allclose(sum_NL, fa_NL + fb_NL, rtol=1e-5)
    assert (a_NL * fb_NL).sum() == pytest.approx((fa_NL * b_NL).sum(), rel=1e-3)


def test_mass_is_the_filter_of_ones() -> None:
    ones_NL = np.ones((15 * 17, 1))
    ones_filtered_NL, built = filtered(photograph(15, 17), 80.0, 13.0, ones_NL)
    np.testing.assert_array_equal(built.mass, ones_filtered_NL[built.link, 0])


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(
    ("sigma", "color_sigma"), [(0.5, None), (1.0, None), (3.0, None), (67.0, 3.0), (80.0, 13.0)]
)
def test_a_sweep_in_steps_filters_like_one_step(
    sigma: float, color_sigma: float | None, rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rows:
        monkeypatch.setattr(placing, "_KEY_LIMIT", 0)
    image_HW3 = photograph(41, 53)
    signal_NL = np.random.default_rng(0).random((41 * 53, 2))
    whole_NL, at_once = filtered(image_HW3, sigma, color_sigma, signal_NL)
    assert len(at_once.plan[0]) == 1
    for batch in (1, 30, 200):
        swept_NL, swept = filtered(image_HW3, sigma, color_sigma, signal_NL, batch=batch, whole=0)
        assert len(swept.plan[0]) > 1
        assert swept.vertices == at_once.vertices
        # A step of many vertices may leave nothing to reuse the ring for.
        assert swept.plan[1] < swept.vertices or batch > 1
        np.testing.assert_allclose(swept_NL, whole_NL, rtol=1e-5)


def test_filtering_in_place_adds_the_rows_of_another_order() -> None:
    signal_NL = np.random.default_rng(0).random((15 * 17, 2)).astype(np.float32)
    extra_NL = np.random.default_rng(1).random((15 * 17, 2)).astype(np.float32)
    mate_N = np.random.default_rng(2).permutation(15 * 17).astype(np.int32)
    expected_NL, built = filtered(photograph(15, 17), 3.0, None, signal_NL)
    places_N, home = in_own_order(built)
    rows_NL = np.empty_like(signal_NL)
    rows_NL[places_N] = signal_NL
    rows = rows_NL.ravel()
    home.filter_in_place(2, rows, 2.0, home.scratch(2), extra_NL.ravel(), mate_N)
    result_NL = rows.reshape(-1, 2) - extra_NL[mate_N]
    np.testing.assert_allclose(result_NL[places_N], 2 * expected_NL, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("limit", [2**62, 2**20, 0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (23, 31)])
def test_wide_keys_give_the_same_lattice(
    shape: tuple[int, int], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_HW3 = photograph(*shape)
    signal_NL = np.random.default_rng(2).random((shape[0] * shape[1], 1))
    packed_NL, packed = filtered(image_HW3, 20.0, 5.0, signal_NL)
    monkeypatch.setattr(placing, "_KEY_LIMIT", 0)
    monkeypatch.setattr(wide, "_KEY_LIMIT", limit)
    wide_NL, found = filtered(image_HW3, 20.0, 5.0, signal_NL)
    assert found.vertices == packed.vertices
    np.testing.assert_allclose(wide_NL, packed_NL, rtol=1e-5, atol=1e-6)


def test_wide_keys_cost_a_few_times_what_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rows compared in full cost 200 times as much.
    points = np.random.default_rng(0).normal(0, 1, (8, 20_000)).astype(np.float32)

    def cost() -> float:
        times = []
        for _ in range(4):  # the first compiles
            start = time.process_time()
            placing.place_pixels(point_features(points), 32_768)
            times.append(time.process_time() - start)
        return min(times)

    packed = cost()
    monkeypatch.setattr(placing, "_KEY_LIMIT", 0)
    assert cost() < 40 * packed


def test_tiny_deviations_take_the_wide_path_and_are_right() -> None:
    # No two pixels are close: every filter is the identity up to its normalization.
    parameters = CrfParameters(3, 0.02, 0.0, 0.02, 0.05, 5.0)
    scores_KHW = np.random.default_rng(3).random((1, 12, 14), np.float32)
    posterior_KHW = DenseCrf(photograph(12, 14), parameters).binary(scores_KHW, 1 - scores_KHW)
    assert (posterior_KHW[scores_KHW > 0.6] > 0.9).all()
    assert (posterior_KHW[scores_KHW < 0.4] < 0.1).all()


def test_deviations_too_small_for_float32_are_refused() -> None:
    parameters = CrfParameters(3, 3.0, 3.0, 1e-5, 13.0, 5.0)
    with pytest.raises(ValueError, match="too small"):
        DenseCrf(photograph(12, 14), parameters)


def test_a_table_grows_to_what_is_asked_at_once() -> None:
    # The row of an image 20,000 px wide; a full table is searched for ever.
    table = new_table(1 << 12)
    keys = np.arange(100, dtype=np.int64) * 12345
    for fresh, key in enumerate(keys):
        number(table, key, fresh)
    larger = roomy(table, 20_000)
    assert larger.size >= 4 * 20_000
    assert [known(larger, key) for key in keys] == list(range(100))
    assert roomy(larger, 20_000) is larger


def test_spatial_lattices_are_kept_per_size_and_sigma() -> None:
    first = spatial_lattice(grid_features(13, 17, (3.0, 3.0)))
    assert spatial_lattice(grid_features(13, 17, (3.0, 3.0)))[1] is first[1]
    assert spatial_lattice(grid_features(17, 13, (3.0, 3.0)))[1] is not first[1]
    assert spatial_lattice(grid_features(13, 17, (3.0, 1.0)))[1] is not first[1]
    assert spatial_lattice(grid_features(13, 17, (3.0, 3.0)), "before")[1] is not first[1]
    np.testing.assert_array_equal(np.sort(first[0]), np.arange(13 * 17))
