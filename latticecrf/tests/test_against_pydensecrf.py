"""The lattice backend equals pydensecrf to float noise, whatever it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latticecrf import CrfParameters, DenseCrf
from latticecrf.mean_field.binary_updates import FLOOR
from latticecrf.mean_field.freezing import largest_shares, weak_labels
from latticecrf.mean_field.solver import LatticeSolver

pytest.importorskip("pydensecrf", reason="the reference, pydensecrf2, is not installed")

# Float noise grows through ten iterations of a strongly coupled field; masks do not notice.
TOLERANCE = 1e-3

PARAMETERS = st.builds(
    CrfParameters,
    iterations=st.integers(0, 10),
    gaussian_sigma=st.sampled_from([0.5, 1.0, 3.0, 10.0]),
    gaussian_weight=st.sampled_from([0.0, 1.0, 3.0, 10.0]),
    bilateral_sigma=st.sampled_from([5.0, 50.0, 67.0, 80.0]),
    bilateral_color_sigma=st.sampled_from([3.0, 5.0, 13.0, 60.0]),
    bilateral_weight=st.sampled_from([0.0, 4.0, 10.0]),
)
SIDES = st.one_of(st.sampled_from([1, 2]), st.integers(3, 40))
BUDGET = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def make_image(height: int, width: int, seed: int) -> Any:
    """Noise, a gradient with blobs, or a constant: what the seed says."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if seed % 3 == 1:
        return np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    ramp_HW = np.linspace(0, 255, height * width).reshape(height, width)
    noise_HW3 = rng.normal(0, 6, (height, width, 3))
    return np.clip(ramp_HW[..., None] + noise_HW3, 0, 255).astype(np.uint8)


def make_scores(shape: tuple[int, ...], seed: int) -> Any:
    """Scores of 0..1 that hold exact zeros and ones."""
    rng = np.random.default_rng(seed)
    scores = rng.random(shape, np.float32) ** 2
    scores[rng.random(shape) < 0.1] = 0.0
    scores[rng.random(shape) < 0.1] = 1.0
    return scores


def strongest_message(image_HW3: Any, parameters: CrfParameters) -> float:
    """The message of a label that is certain everywhere, at its largest."""
    solver = LatticeSolver(image_HW3, parameters)
    return float(solver._bank.mass(solver._weights).max())


def weak(scores_MHW: Any, strongest: float) -> Any:
    """Which labels are frozen before filtering."""
    scores_MN = scores_MHW.reshape(len(scores_MHW), -1)
    return weak_labels(largest_shares(scores_MN, FLOOR, 1 / scores_MN.sum(axis=0)), strongest)


@BUDGET
@given(SIDES, SIDES, st.integers(1, 5), PARAMETERS, st.integers(0, 1000))
def test_binary(height: int, width: int, count: int, parameters: CrfParameters, seed: int) -> None:
    image_HW3 = make_image(height, width, seed)
    foreground_KHW = make_scores((count, height, width), seed)
    background_KHW = (1 - foreground_KHW) ** 3
    ours, theirs = (
        DenseCrf(image_HW3, parameters, backend).binary(foreground_KHW, background_KHW)
        for backend in ("lattice", "pydensecrf")
    )
    assert ours.dtype == np.float32
    assert ours.shape == foreground_KHW.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE


@BUDGET
@given(
    SIDES,
    SIDES,
    st.one_of(st.integers(1, 24), st.integers(25, 40)),
    PARAMETERS,
    st.integers(0, 1000),
)
def test_joint(height: int, width: int, count: int, parameters: CrfParameters, seed: int) -> None:
    image_HW3 = make_image(height, width, seed)
    scores_MHW = make_scores((count, height, width), seed)
    ours, theirs = (
        DenseCrf(image_HW3, parameters, backend).joint(scores_MHW)
        for backend in ("lattice", "pydensecrf")
    )
    assert np.abs(ours - theirs).max() <= TOLERANCE
    np.testing.assert_allclose(ours.sum(axis=0), 1.0, atol=1e-5)


def test_weak_labels_are_frozen_without_a_trace() -> None:
    rng = np.random.default_rng(0)
    image_HW3 = make_image(40, 50, 2)
    scores_MHW = np.full((91, 40, 50), 1e-7, np.float32)
    scores_MHW[[0, 15, 60]] = rng.dirichlet([1, 1, 1], (40, 50)).transpose(2, 0, 1)
    parameters = CrfParameters.segmentation()
    strongest = strongest_message(image_HW3, parameters)
    frozen_M = weak(np.clip(scores_MHW, 1e-5, 1.0), strongest)
    np.testing.assert_array_equal(np.flatnonzero(~frozen_M), [0, 15, 60])

    ours = DenseCrf(image_HW3, parameters).joint(scores_MHW)
    theirs = DenseCrf(image_HW3, parameters, "pydensecrf").joint(scores_MHW)
    assert np.abs(ours - theirs).max() <= 1e-4
    np.testing.assert_array_equal(ours.argmax(axis=0), theirs.argmax(axis=0))
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-2)


def test_a_label_that_could_matter_is_not_frozen() -> None:
    scores_MHW = np.full((3, 40, 50), 1e-5, np.float32)
    scores_MHW[0] = 1.0
    scores_MHW[2, 0, 7] = 0.02
    np.testing.assert_array_equal(weak(scores_MHW, 7.0), [False, True, False])


# With 21 labels one is implied by the others until some settle; with 40 none is.
@pytest.mark.parametrize("count", [21, 40])
def test_labels_settle_after_the_first_iteration(count: int) -> None:
    # Absent labels of about 1e-3: too strong to leave out unseen, too weak to move again.
    rng = np.random.default_rng(1)
    image_HW3 = make_image(40, 50, 2)
    scores_MHW = rng.uniform(1e-4, 1e-3, (count, 40, 50)).astype(np.float32)
    scores_MHW[[0, 15]] = rng.dirichlet([1, 1], (40, 50)).transpose(2, 0, 1)
    parameters = CrfParameters.segmentation()
    strongest = strongest_message(image_HW3, parameters)
    assert weak(scores_MHW, strongest).sum() < count // 2
    ours = DenseCrf(image_HW3, parameters).joint(scores_MHW)
    theirs = DenseCrf(image_HW3, parameters, "pydensecrf").joint(scores_MHW)
    assert np.abs(ours - theirs).max() <= 2e-4
    np.testing.assert_allclose(ours.sum(axis=0), 1.0, atol=1e-5)


def test_messages_of_any_size() -> None:
    # Weights far beyond the published ones: the softmax must not overflow.
    image_HW3 = make_image(20, 23, 1)
    scores_MHW = make_scores((18, 20, 23), 3)
    parameters = CrfParameters(3, 3.0, 60.0, 80.0, 13.0, 60.0)
    ours, theirs = (
        DenseCrf(image_HW3, parameters, backend).joint(scores_MHW)
        for backend in ("lattice", "pydensecrf")
    )
    assert np.isfinite(ours).all()
    assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("parameters", [CrfParameters.ppmg(), CrfParameters.segmentation()])
def test_lattices_that_are_filtered_in_many_steps(parameters: CrfParameters) -> None:
    # Noise: nearly every pixel has vertices of its own, so that lattices are cut into steps.
    rng = np.random.default_rng(4)
    image_HW3 = rng.integers(0, 256, (110, 130, 3), dtype=np.uint8)
    scores_MHW = make_scores((19, 110, 130), 4)
    ours, theirs = (
        DenseCrf(image_HW3, parameters, backend).joint(scores_MHW)
        for backend in ("lattice", "pydensecrf")
    )
    assert np.abs(ours - theirs).max() <= TOLERANCE
