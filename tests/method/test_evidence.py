"""What is asked of a mask where there is no ground truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pmm_ray.method.evidence import hidden, lift, parts


def told(mask: NDArray[np.bool_], tells: NDArray[np.float64]) -> float:
    """The probability of a linear classifier that sees what is in a mask alone."""
    return float((tells * mask).mean())


def lifts(masks: list[NDArray[np.bool_]], tells: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = [[told(mask, tells) for mask in masks]]
    rest = [[told(~mask, tells) for mask in masks]]
    area = [[mask.mean() for mask in masks]]
    return lift(np.array([tells.mean()]), np.zeros(1), *map(np.array, (inside, rest, area)))


def square(margin: int) -> NDArray[np.bool_]:
    mask = np.zeros((40, 40), np.bool_)
    mask[12 - margin : 28 + margin, 12 - margin : 28 + margin] = True
    return mask


def test_the_object_itself_is_better_than_less_and_than_more() -> None:
    tells = np.where(square(0), 1.0, 0.0)
    found = lifts([square(margin) for margin in (-5, -2, 0, 2, 5)], tells)
    assert found.argmax() == 2
    assert (np.diff(found[:3]) > 0).all()
    assert (np.diff(found[2:]) < 0).all()


def test_a_telling_part_alone_is_not_enough() -> None:
    # the head tells four times as much as the body: the whole is better than the head
    tells = np.where(square(0), 1.0, 0.0)
    tells[12:18, 12:28] = 4.0
    head = square(0) & (np.arange(40) < 18)[:, None]
    assert lifts([head, square(0), square(8)], tells).argmax() == 1


def test_nothing_everything_and_chance_have_no_lift() -> None:
    tells = np.where(square(0), 1.0, 0.1)
    rng = np.random.default_rng(0)
    masks = [np.zeros((40, 40), np.bool_), np.ones((40, 40), np.bool_), rng.random((40, 40)) < 0.3]
    np.testing.assert_allclose(lifts(masks, tells), [0, 0, 0], atol=0.03)


def test_the_formula() -> None:
    # two pairs of weights 0.8 and 0.2, and one that the classifier does not see
    whole, blank = np.array([0.9, 0.5, 0.1]), np.array([0.1, 0.3, 0.3])
    inside, rest = np.array([[0.7], [0.9], [0.9]]), np.array([[0.5], [0.4], [0.9]])
    area = np.array([[0.25], [0.5], [0.9]])
    first, second = (6 / 8 + 4 / 8) / 2 - 0.25, (1 + 1 / 2) / 2 - 0.5
    expected = 0.8 * first + 0.2 * second
    np.testing.assert_allclose(lift(whole, blank, inside, rest, area), [expected])
    assert np.isnan(lift(blank[:2], whole[:2], inside[:2], rest[:2], area[:2])).all()


def test_what_is_hidden_is_blurred_and_the_rest_as_it_was() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[square(0)] = 200
    blurred = hidden(image)
    # no edge is left, and no light is lost
    assert np.abs(np.diff(blurred.astype(int), axis=0)).max() < 200 / 8
    assert abs(float(blurred.mean()) - float(image.mean())) < 2
    inside, rest = parts(image, blurred, square(0))
    np.testing.assert_array_equal(inside[square(0)], image[square(0)])
    np.testing.assert_array_equal(inside[~square(0)], blurred[~square(0)])
    np.testing.assert_array_equal(rest[~square(0)], image[~square(0)])
    np.testing.assert_array_equal(rest[square(0)], blurred[square(0)])


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)])
def test_only_rgb_photographs_can_be_hidden(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="image"):
        hidden(image)
