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

from latticecrf.mean_field import recent
from latticecrf.mean_field.filter_bank import FilterBank
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
        scores = np.clip(rng.dirichlet([0.3] * labels, pixels).T, 1e-5, 1)
        return np.ascontiguousarray(-np.log(scores), np.float32)
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


@BUDGET
@given(st.integers(1, 8), st.integers(1, 700), st.integers(2, 5), NORMALIZATIONS, SEEDS)
def test_points_of_one_to_eight_dimensions(
    dimensions: int, count: int, labels: int, normalization: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    spread = [0.1, 1.0, 5.0][seed % 3]
    features = rng.normal(0, spread, (dimensions, count)).astype(np.float32)
    energies = make_energies(labels, count, seed)
    results = []
    for module in (ours, theirs):
        crf = module.DenseCRF(count, labels)
        crf.setUnaryEnergy(energies)
        crf.addPairwiseEnergy(features, 3.0, normalization=normalization)
        results.append(np.array(crf.inference(3)))
    # without normalization a message is as strong as the points are many
    limit = 1e-4 if normalization else 1e-2
    assert np.abs(results[0] - results[1]).max() <= limit


def test_step_by_step_is_inference_and_the_divergence_falls() -> None:
    energies = make_energies(5, 20 * 30, 0)
    both = []
    for module in (ours, theirs):
        crf = module.DenseCRF2D(30, 20, 5)
        crf.setUnaryEnergy(energies)
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=40, srgb=13, rgbim=make_image(20, 30, 1), compat=4)
        posterior, first, second = crf.startInference()
        divergences = [crf.klDivergence(posterior)]
        for _ in range(4):
            crf.stepInference(posterior, first, second)
            divergences.append(crf.klDivergence(posterior))
        np.testing.assert_allclose(np.array(posterior), np.array(crf.inference(4)), atol=1e-4)
        both.append((np.array(posterior), divergences))
    np.testing.assert_allclose(both[0][0], both[1][0], atol=1e-4)
    np.testing.assert_allclose(both[0][1], both[1][1], rtol=1e-4)
    assert both[0][1] == sorted(both[0][1], reverse=True)


@pytest.mark.parametrize(
    "compat",
    [
        np.full(5, -3, np.float32),
        np.float32(3) * (1 - np.eye(5, dtype=np.float32)),
        (2 * np.eye(5) + 5 * (1 - np.eye(5))).astype(np.float32),
    ],
    ids=["vector", "matrix", "matrix with a diagonal"],
)
def test_a_weight_may_be_written_as_energies(compat: Any) -> None:
    energies = make_energies(5, 20 * 30, 0)
    fields = []
    for module, value in ((ours, 3), (ours, compat), (theirs, compat)):
        crf = module.DenseCRF2D(30, 20, 5)
        crf.setUnaryEnergy(energies)
        crf.addPairwiseGaussian(sxy=3, compat=value)
        posterior = crf.startInference()[0]
        fields.append((np.array(crf.inference(5)), crf.klDivergence(posterior)))
    (number, _), (mine, divergence), (truth, expected) = fields
    np.testing.assert_array_equal(mine, number)
    np.testing.assert_allclose(mine, truth, atol=1e-4)
    assert divergence == pytest.approx(expected, rel=1e-4)


def test_layouts_and_types_do_not_matter() -> None:
    energies, image = make_energies(3, 12 * 10, 2), make_image(12, 10, 3)
    features = np.random.default_rng(0).normal(0, 1, (4, 120)).astype(np.float32)

    def calls(image: Any, features: Any, matrix: Any) -> Any:
        return [
            ("addPairwiseBilateral", {"sxy": 40, "srgb": 13, "rgbim": image, "compat": 4}),
            ("addPairwiseEnergy", {"features": features, "compat": matrix}),
        ]

    matrix = np.random.default_rng(1).uniform(-1, 1, (3, 3)).astype(np.float32)
    expected = solve(ours, (12, 10), energies, calls(image, features, matrix), 4)
    image.flags.writeable = False
    backwards = np.ascontiguousarray(image[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    wide = np.repeat(features.astype(np.float64), 2, axis=1)[:, ::2]
    energies.flags.writeable = False
    for layout in (np.asfortranarray(energies), energies.astype(np.float64), energies):
        given_calls = calls(backwards, wide, matrix.astype(np.float64).tolist())
        np.testing.assert_array_equal(solve(ours, (12, 10), layout, given_calls, 4), expected)


def test_a_bool_image_is_one_of_zeros_and_ones() -> None:
    energies, image = make_energies(3, 12 * 10, 2), make_image(12, 10, 3) > 100
    call = {"sxy": 3, "srgb": 0.5, "rgbim": image, "compat": 4}
    assert_alike((12, 10), energies, [("addPairwiseBilateral", call)], 4)


def test_a_label_may_be_forbidden() -> None:
    for labels in (2, 3):
        energies = make_energies(labels, 120, 2)
        energies[1, :60] = np.inf
        calls = [("addPairwiseGaussian", {"sxy": 3, "compat": 3})]
        mine = solve(ours, (12, 10), energies, calls, 3)
        np.testing.assert_allclose(mine, solve(theirs, (12, 10), energies, calls, 3), atol=1e-4)
        assert mine[1, :60].max() < 1e-7


@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_both_of_two_labels_keep_the_digits_of_small_posteriors(iterations: int) -> None:
    energies = np.full((2, 120), 0.01, np.float32)
    energies[0, :60] = energies[1, 60:] = 21
    energies[:, 60:] += 50
    calls = [("addPairwiseGaussian", {"sxy": 3, "compat": 0.5})]
    mine = solve(ours, (12, 10), energies, calls, iterations)
    np.testing.assert_allclose(mine, solve(theirs, (12, 10), energies, calls, iterations), 1e-4)
    assert (mine.min(axis=1) < 1e-8).all()
    assert np.isfinite(mine * np.log(mine)).all()


def test_sizes_are_cut_and_unary_energies_come_as_objects_too() -> None:
    energies = make_energies(3, 120, 0)
    found = []
    for module in (ours, theirs):
        for size in ((10.0, 12, np.float64(3)), (10.7, np.int64(12), np.array(3))):
            crf = module.DenseCRF2D(*size)
            crf.setUnary(module.ConstUnary(energies))
            crf.addPairwiseGaussian(sxy=3, compat=3)
            found.append(np.array(crf.inference(np.int64(2))))
            crf.setUnaryEnergy(energies, f=None)
            found += [np.array(crf.inference(count)) for count in (2.0, 2.7, np.array(2))]
    for posterior in found:
        np.testing.assert_allclose(posterior, found[0], atol=1e-5)


@pytest.mark.parametrize(
    ("sxy", "srgb"), [(np.inf, np.inf), (np.inf, 13), ((np.inf, 3), 13), (40, (np.inf, 13, 13))]
)
def test_a_feature_without_weight_has_an_infinite_deviation(sxy: Any, srgb: Any) -> None:
    energies, image = make_energies(3, 12 * 10, 2), make_image(12, 10, 3)
    calls = [
        ("addPairwiseGaussian", {"sxy": sxy, "compat": 3}),
        ("addPairwiseBilateral", {"sxy": sxy, "srgb": srgb, "rgbim": image, "compat": 4}),
    ]
    assert_alike((12, 10), energies, calls, 3)


def test_unary_energies_are_a_copy() -> None:
    expected, buffer = make_energies(3, 120, 0), np.empty((3, 120), np.float32)
    for module in (ours, theirs):
        buffer[:] = expected
        unary = module.ConstUnary(buffer)
        buffer[:] = 0  # the next image
        crf = module.DenseCRF(120, 3)
        crf.setUnary(unary)
        posterior = np.array(crf.inference(0))
        np.testing.assert_allclose(posterior, np.exp(-expected) / np.exp(-expected).sum(0), 1e-5)


def test_an_object_builds_its_lattices_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(*arguments: Any) -> FilterBank:
        built.append(arguments)
        return FilterBank(*arguments)

    monkeypatch.setattr(recent, "FilterBank", build)
    monkeypatch.setattr(recent, "_KEPT_PIXELS", 0)  # as if the image were too large
    crf = ours.DenseCRF2D(30, 20, 2)
    crf.addPairwiseBilateral(sxy=40, srgb=13, rgbim=make_image(20, 30, 1), compat=4)
    for seed in (0, 3):
        crf.setUnaryEnergy(make_energies(2, 600, seed))
        crf.inference(1)
    posterior, first, second = crf.startInference()
    crf.stepInference(posterior, first, second)
    crf.klDivergence(posterior)
    assert len(built) == 1
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.inference(1)
    assert len(built) == 2


def test_lattices_are_shared_by_classes_and_kept_by_size() -> None:
    image = make_image(20, 30, 1)

    def lattices(image: Any, compat: float, labels: int = 2) -> Any:
        crf = ours.DenseCRF2D(30, 20, labels)
        crf.setUnaryEnergy(make_energies(labels, 600, 0))
        crf.addPairwiseBilateral(sxy=40, srgb=13, rgbim=image, compat=compat)
        crf.addPairwiseGaussian(sxy=3, compat=compat)
        crf.inference(1)
        return crf._filters()[0]._lattices

    first = lattices(image, 3)
    # another class, another number of labels, other weights: the same image
    assert lattices(image.copy(), 5, labels=4)[1] is first[1]
    other = lattices(image[::-1].copy(), 3)
    assert other[0] is first[0]
    assert other[1] is not first[1]
