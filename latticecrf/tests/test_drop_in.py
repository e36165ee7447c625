"""The drop-in gives what pydensecrf gives, whatever it is asked, and `ValueError` where that dies.

Both sides are asked the same; how far posteriors may differ is measured: pydensecrf itself is asked
again with energies that differ by float noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latticecrf.pydensecrf import densecrf as ours

theirs = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")

BUDGET = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
SIDES = st.one_of(st.sampled_from([1, 2, 4]), st.integers(3, 30))
LABELS = st.one_of(st.sampled_from([1, 2, 3]), st.integers(4, 40))
SEEDS = st.integers(0, 10_000)
NORMALIZATIONS = st.integers(0, 3)
KERNELS = st.integers(0, 2)


def make_image(height: int, width: int, seed: int) -> Any:
    """Noise, flat regions or a ramp: what the seed says."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    regions = rng.integers(0, 256, (2, 2, 3)).repeat(-(-height // 2), 0).repeat(-(-width // 2), 1)
    noise = rng.integers(0, 9, (height, width, 3))
    return np.clip(regions[:height, :width] + noise, 0, 255).astype(np.uint8)


def make_energies(labels: int, pixels: int, seed: int) -> Any:
    """Energies of a softmax, of hard labels, or any floats: what the seed says."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        return -np.log(np.clip(rng.dirichlet([0.3] * labels, pixels).T, 1e-5, 1)).astype(np.float32)
    if seed % 3 == 1:
        energies = np.full((labels, pixels), 3.0, np.float32)
        energies[rng.integers(0, labels, pixels), np.arange(pixels)] = 0.4
        return energies
    spread = [1.0, 30.0, 300.0][seed // 3 % 3]
    return (rng.normal(0, spread, (labels, pixels)) + rng.normal(0, 50)).astype(np.float32)


@st.composite
def compatibilities(draw: Any, labels: int) -> Any:
    """A number, a vector or a matrix."""
    kind = draw(st.sampled_from(["number", "number", "vector", "matrix"]))
    if kind == "number":
        return draw(st.sampled_from([0, 3, 10.0, np.float32(4.0), -1.5]))
    rng = np.random.default_rng(draw(SEEDS))
    if kind == "vector":
        return -rng.uniform(0, 6, labels).astype(np.float32)
    return rng.uniform(-3, 3, (labels, labels)).astype(np.float32)


@st.composite
def terms(draw: Any, height: int, width: int, labels: int) -> list[tuple[str, dict[str, Any]]]:
    """Calls that add pairwise energies to a two-dimensional CRF."""
    calls: list[tuple[str, dict[str, Any]]] = []
    sides = [0.5, 1, 3, np.float64(10), 80.0]
    for kind in draw(st.lists(st.sampled_from(["Gaussian", "Bilateral", "Energy"]), max_size=4)):
        options: dict[str, Any] = {"compat": draw(compatibilities(labels))}
        if draw(st.booleans()):
            options |= {"kernel": draw(KERNELS), "normalization": draw(NORMALIZATIONS)}
        sigma = st.sampled_from(sides)
        if kind == "Energy":
            rng = np.random.default_rng(draw(SEEDS))
            shape = draw(st.integers(1, 6)), height * width
            options["features"] = rng.normal(0, draw(st.sampled_from([0.2, 1.0, 4.0])), shape)
            options["features"] = options["features"].astype(np.float32)
        else:
            options["sxy"] = draw(st.one_of(sigma, st.tuples(sigma, sigma)))
        if kind == "Bilateral":
            color = st.sampled_from([3, 5.0, 13, 60])
            options["srgb"] = draw(st.one_of(color, st.tuples(color, color, color)))
            options["rgbim"] = make_image(height, width, draw(SEEDS))
        calls.append((f"addPairwise{kind}", options))
    return calls


def solve(module: Any, size: tuple[int, int], energies: Any, calls: Any, iterations: int) -> Any:
    """The posteriors of one side."""
    height, width = size
    crf = module.DenseCRF2D(width, height, len(energies))
    crf.setUnaryEnergy(energies)
    for name, options in calls:
        getattr(crf, name)(**options)
    return np.array(crf.inference(iterations))


def assert_alike(size: tuple[int, int], energies: Any, calls: Any, iterations: int) -> None:
    """The same posteriors to float noise, and the same labels but for ties."""
    mine = solve(ours, size, energies, calls, iterations)
    truth = solve(theirs, size, energies, calls, iterations)
    assert mine.shape == truth.shape
    assert mine.dtype == truth.dtype
    noise = np.random.default_rng(0).uniform(-2e-6, 2e-6, energies.shape)
    shaken = (energies + noise * (1 + np.abs(energies))).astype(np.float32)
    moved = np.abs(solve(theirs, size, shaken, calls, iterations) - truth).max()
    allowed = 1e-4 + 20 * moved
    assert np.abs(mine - truth).max() <= allowed
    best = np.sort(truth, axis=0)
    if len(truth) > 1:
        clear = best[-1] - best[-2] > 2 * allowed
        np.testing.assert_array_equal(mine.argmax(0)[clear], truth.argmax(0)[clear])


@BUDGET
@given(SIDES, SIDES, LABELS, SEEDS, st.sampled_from([0, 1, 2, 5, 10]), st.data())
def test_two_dimensional_crfs(
    height: int, width: int, labels: int, seed: int, iterations: int, data: Any
) -> None:
    energies = make_energies(labels, height * width, seed)
    calls = data.draw(terms(height, width, labels))
    assert_alike((height, width), energies, calls, iterations)
