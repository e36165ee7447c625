"""Pair affinities, their labels and loss: by hand, against a loop over all pairs, and shapes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latticecrf import CrfParameters, DenseCrf
from pmm_ray.method.affinity import affinity_loss, directions, pair_affinities, pair_labels
from pmm_ray.method.affinity_labels import confident_labels

IGNORE = 255


def test_radius_five_has_the_thirty_four_pairs_of_the_paper() -> None:
    ways = directions(5)
    assert len(ways) == 34
    assert all(dy * dy + dx * dx < 25 for dy, dx in ways)
    # each two neighbours are one pair
    assert not {(-dy, -dx) for dy, dx in ways} & set(ways)
    both = set(ways) | {(-dy, -dx) for dy, dx in ways}
    reach = range(-5, 6)
    assert both == {(y, x) for y in reach for x in reach if 0 < math.hypot(y, x) < 5}


def test_a_radius_without_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no neighbour"):
        directions(1)


@pytest.mark.parametrize("size", [(6, 7), (2, 9), (1, 1)])
def test_affinities_are_those_of_a_loop_over_all_pairs(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3, *size)
    got = pair_affinities(features, 4)
    want = torch.zeros_like(got)
    for d, (dy, dx) in enumerate(directions(4)):
        for y in range(size[0]):
            for x in range(size[1]):
                if y + dy < size[0] and 0 <= x + dx < size[1]:
                    distance = (features[:, :, y, x] - features[:, :, y + dy, x + dx]).abs()
                    want[:, d, y, x] = torch.exp(-distance.mean(dim=1))
    torch.testing.assert_close(got, want)


def test_pairs_of_a_map_by_hand() -> None:
    labels = torch.tensor([[[0, 0, 2], [IGNORE, 2, 1]]], dtype=torch.int32)
    background, foreground, different = (pairs[0] for pairs in pair_labels(labels, 2, IGNORE))
    found = {}
    for d, way in enumerate(directions(2)):
        found[way] = [
            [(int(y), int(x)) for y, x in pairs[d].nonzero()]
            for pairs in (background, foreground, different)
        ]
    assert found == {
        (0, 1): [[(0, 0)], [], [(0, 1), (1, 1)]],  # (1, 0) is unknown
        (1, -1): [[], [(0, 2)], []],  # (0, 1)'s partner is unknown
        (1, 0): [[], [], [(0, 1), (0, 2)]],
        (1, 1): [[], [], [(0, 0), (0, 1)]],
    }


def test_the_loss_by_hand() -> None:
    # a row of four: two background, then two of one class; radius 2: pairs (0,1) (1,2) (2,3)
    labels = torch.tensor([[[0, 0, 3, 3]]])
    affinity = torch.zeros(1, len(directions(2)), 1, 4)
    way = directions(2).index((0, 1))
    affinity[0, way, 0] = torch.tensor([0.5, 0.25, 0.8, 0.0])
    got = affinity_loss(affinity, pair_labels(labels, 2, IGNORE))
    want = -math.log(0.5) / 4 - math.log(0.8) / 4 - math.log(1 - 0.25) / 2
    assert got.item() == pytest.approx(want, abs=1e-4)


def test_kinds_of_pairs_weigh_the_same_however_many_there_are() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int32)
    labels[0, 3:5, 3:5] = 1
    pairs = pair_labels(labels, 3, IGNORE)
    assert pairs.background.sum() > 10 * pairs.foreground.sum() > 0
    affinity = torch.full(pairs.background.shape, 0.5)
    assert affinity_loss(affinity, pairs).item() == pytest.approx(math.log(2), abs=1e-3)


def test_training_pulls_an_object_together_and_away_from_the_rest() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(1, 6, 6, dtype=torch.int32)
    labels[0, 2:, 2:] = 4
    labels[0, 0, 0] = IGNORE
    features = torch.randn(1, 2, 6, 6, requires_grad=True)
    pairs = pair_labels(labels, 3, IGNORE)
    optimizer = torch.optim.SGD([features], lr=20.0)
    for _ in range(300):
        optimizer.zero_grad()
        affinity_loss(pair_affinities(features, 3), pairs).backward()
        # nothing is known about the corner
        assert features.grad is not None
        assert not features.grad[0, :, 0, 0].any()
        optimizer.step()
    affinity = pair_affinities(features.detach(), 3)
    alike = affinity[pairs.background | pairs.foreground].mean()
    assert alike > 0.8
    assert affinity[pairs.different].mean() < 0.2


def test_no_pair_at_all_costs_nothing() -> None:
    labels = torch.full((1, 4, 4), IGNORE)
    loss = affinity_loss(torch.rand(1, len(directions(3)), 4, 4), pair_labels(labels, 3, IGNORE))
    assert loss.item() == 0.0


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray]:
    """A flat image with a bright square, and CAMs of two classes; the first lies on the square."""
    image = np.full((40, 48, 3), 60, np.uint8)
    image[10:30, 8:24] = 220
    y, x = np.mgrid[:40, :48]
    near = np.exp(-((y - 20) ** 2 + (x - 16) ** 2) / 120)
    return image, np.stack([near, 0.3 * np.exp(-((y - 8) ** 2 + (x - 40) ** 2) / 60)])


@pytest.mark.parametrize("size", [(40, 48), (37, 43)])
def test_labels_are_those_of_averaged_posteriors(
    scene: tuple[np.ndarray, np.ndarray], size: tuple[int, int]
) -> None:
    """The released rule: pooled by 8, then the low exponent's classes, then the high one's 0."""
    image = np.ascontiguousarray(scene[0][: size[0], : size[1]])
    cam = np.ascontiguousarray(scene[1][:, : size[0], : size[1]], np.float32)
    solver = DenseCrf(image, CrfParameters.seam())

    def strongest(alpha: float) -> np.ndarray:
        scores = np.stack([(1 - cam.max(0)) ** np.float32(alpha), cam[1], cam[0]])
        posterior = torch.from_numpy(solver.joint(scores))
        strongest: np.ndarray = F.avg_pool2d(posterior, 8, ceil_mode=True).argmax(0).numpy()
        return strongest

    seen = set()
    for alpha_high in (20.0, 24.0):
        got = confident_labels(image, cam, [9, 5], alpha_low=1, alpha_high=alpha_high)
        cells = np.array([IGNORE, 5, 9])[strongest(1)]
        cells[strongest(alpha_high) == 0] = 0
        want = np.kron(cells, np.ones((8, 8), int))
        np.testing.assert_array_equal(got, want[: size[0], : size[1]])
        seen |= set(np.unique(got).tolist())
    assert {0, 9} <= seen <= {0, 5, 9, IGNORE}


def test_a_cell_is_what_its_mean_posterior_says() -> None:
    still = replace(CrfParameters.seam(), iterations=0)
    cam = np.zeros((1, 8, 8), np.float32)
    cam[0, :, :3] = 0.9  # a posterior of nearly 1 on 3 / 8 of the cell
    labels = confident_labels(np.zeros((8, 8, 3), np.uint8), cam, [3], crf=still)
    assert (labels == 0).all()


def test_labels_need_the_exponents_in_order(scene: tuple[np.ndarray, np.ndarray]) -> None:
    image, cam = scene
    with pytest.raises(ValueError, match="alpha_high"):
        confident_labels(image, cam, [9, 5], alpha_low=24, alpha_high=4)


def test_an_image_without_classes_is_not_known() -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    labels = confident_labels(image, np.zeros((0, 4, 5), np.float32), [])
    assert labels.dtype == np.uint8
    assert (labels == IGNORE).all()
    wide = confident_labels(image, np.zeros((0, 4, 5), np.float32), [], ignore=65535)
    assert wide.dtype == np.uint16
