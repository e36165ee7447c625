"""What is said of pixels that are not labelled, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from pmm_ray.labels import VOC12
from pmm_ray.method.confusion import count_pairs
from pmm_ray.method.readings import Counts, choose_readings

WANTED = ("contiguous", "contiguous")


def counts(truth: list[int], mask: list[int]) -> Counts:
    true, predicted, pixels = count_pairs(*(np.array([x], np.uint8) for x in (truth, mask)))
    return Counts(np.zeros_like(pixels), *(x.astype(np.int64) for x in (true, predicted, pixels)))


def test_much_of_the_truth_that_is_not_labelled_is_said() -> None:
    _, note = choose_readings(counts([255, 255, 0, 1], [0, 0, 0, 1]), VOC12, WANTED)
    assert note.startswith("50.0 % of the ground truth's pixels are 255, 'not labelled'")


def test_borders_are_not() -> None:
    assert choose_readings(counts([255, 0, 0, 1], [0, 0, 0, 1]), VOC12, WANTED)[1] == ""


def test_a_background_of_255_on_both_sides_is_refused() -> None:
    values = counts([255, 255, 255, 0, 1], [255, 255, 255, 0, 1])
    with pytest.raises(ValueError, match="60 % of the pixels are 255 in the ground truth and"):
        choose_readings(values, VOC12, WANTED)
    # masks of ours leave pixels open
    assert choose_readings(values, VOC12, WANTED, ["truth"])[1].startswith("60.0 %")
