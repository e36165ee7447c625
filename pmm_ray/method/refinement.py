"""Masks from the scores or activation maps of other programs, by the CRF settings that they use."""

# K: classes with a map; M: labels, the background first; H, W: image.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from latticecrf import merge_weak_labels
from latticecrf.checks import Float32Array
from latticecrf.dense_crf import Backend
from latticecrf.presets import Setting

Image = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]


def before_crf(setting: Setting, labels: Sequence[int], planes: Float32Array, ignore: int) -> Ids:
    """The mask that the same planes give without a CRF.

    Args:
        setting: whose background, thresholds and two strengths count; its confidence does not.
        labels: class ids of the planes; of scores the background 0 among them.
        planes: scores [M, H, W] where the setting's background is `given`, else maps [K, H, W];
            0..1.
        ignore: the value of pixels that are ignored.

    Returns:
        Class ids or `ignore`, int64 [H, W].
    """
    plain = replace(setting, least_posterior=0.0)
    return _ids(plain.labels(planes, lambda scores_MHW: scores_MHW), plain, labels, ignore)


def refine(
    setting: Setting,
    image_HW3: Image,
    labels: Sequence[int],
    planes: Float32Array,
    ignore: int,
    backend: Backend = "lattice",
) -> Ids:
    """The mask after the joint CRF: see `before_crf`.

    A pixel is ignored whose best posterior is below the setting's confidence, or where its two
    strengths disagree. Scores of classes that can hardly matter are added up first, which changes
    a posterior by less than the engine itself allows (`merge_weak_labels`).

    Args:
        image_HW3: RGB, uint8.
    """
    if setting.background != "given":
        crf = setting.crf(image_HW3, backend)
        return _ids(setting.labels(planes, crf.joint), setting, labels, ignore)
    kept, merged = merge_weak_labels(planes, setting.parameters)
    if len(merged) > 1:
        merged = setting.crf(image_HW3, backend).joint(merged)
    else:
        merged = np.ones_like(merged)
    chosen = setting.labels(merged[: len(kept)], lambda posterior_MHW: posterior_MHW)
    return _ids(chosen, setting, [labels[k] for k in kept], ignore)


def _ids(chosen_HW: Ids, setting: Setting, labels: Sequence[int], ignore: int) -> Ids:
    """Class ids of what a setting chose: planes, or of maps the background and each map."""
    planes = list(labels) if setting.background == "given" else [0, *labels]
    # `IGNORED` is the last place
    return np.array([*planes, ignore], np.int64)[chosen_HW]
