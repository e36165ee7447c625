"""Masks of scores and maps by a setting: many classes, ignored pixels, one plane."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from latticecrf.presets import Preset
from pmm_ray.labels import IGNORE_16BIT
from pmm_ray.method.refinement import before_crf, refine

CLASSES = 300
IMAGE = np.zeros((4, 5, 3), np.uint8)


def test_more_classes_than_8_bits_hold_compete_in_one_image() -> None:
    unsure_MHW = np.full((CLASSES + 1, 4, 5), 0.9 / CLASSES, np.float32)
    unsure_MHW[280] = 0.1
    labels = range(CLASSES + 1)
    for confidence, wanted in ((0.0, 280), (1.0, IGNORE_16BIT)):
        setting = replace(Preset.TOCO.value, least_posterior=confidence)
        assert (refine(setting, IMAGE, labels, unsure_MHW, IGNORE_16BIT) == wanted).all()
        assert (before_crf(setting, labels, unsure_MHW, IGNORE_16BIT) == 280).all()


def test_the_maps_of_more_classes_than_8_bits_hold_compete_in_one_image() -> None:
    maps_KHW = np.zeros((CLASSES, 4, 5), np.float32)
    maps_KHW[255], maps_KHW[256] = 0.9, 0.2
    maps_KHW[255, 2:] = 0
    found = before_crf(Preset.IRN.value, range(1, CLASSES + 1), maps_KHW, IGNORE_16BIT)
    assert (found[:2] == 256).all()
    assert (found[2:] == IGNORE_16BIT).all()


def test_one_plane_is_sure_whatever_its_scores_are() -> None:
    sure = replace(Preset.WEAKTR.value, least_posterior=0.9)
    assert not refine(sure, IMAGE, [0], np.full((1, 4, 5), 0.5, np.float32), 255).any()
