"""Masks as rows of the masks table, and as files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticecrf import CrfParameters
from pmm_ray.config import CrfConfig, MasksConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.method.masks import MaskParameters
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.rows.images import encode_mask


def crf_parameters(config: CrfConfig) -> CrfParameters:
    """The method's parameters of a configuration section."""
    return CrfParameters(**config.model_dump())


def mask_parameters(config: MasksConfig) -> MaskParameters:
    """The method's parameters of the mask section.

    Raises:
        CannotRunError: `alpha` is still `auto`.
    """
    if config.alpha == "auto":
        raise CannotRunError("masks.alpha: auto is resolved by `pmm run` only: give a number here")
    variant = MaskParameters.paper() if config.semantics == "paper" else MaskParameters()
    return replace(
        variant,
        alpha=config.alpha,
        smoothing=config.smoothing,
        threshold=config.threshold,
        crf=crf_parameters(config.crf),
    )


def mask_row(
    manifest: Mapping[str, Any], mask_HW: NDArray[Any], label_space: LabelSpace, round_number: int
) -> dict[str, Any]:
    """A row of the masks table."""
    counts = np.bincount(mask_HW.ravel(), minlength=label_space.num_classes)
    present = counts[1 : label_space.num_classes]
    return {
        "image_id": manifest["image_id"],
        "height": mask_HW.shape[0],
        "width": mask_HW.shape[1],
        "mask_png": encode_mask(mask_HW, label_space),
        "foreground": float(present.sum() / mask_HW.size),
        "labels": [int(label) + 1 for label in np.flatnonzero(present)],
        "round": round_number,
    }


@dataclass(frozen=True)
class MaskOutput:
    """Turns class ids into a row of the masks table.

    Attributes:
        round_number: the cyclic round.
        png_folder: each mask is also written there as `<image_id>.png`; None: it is not.
    """

    label_space: LabelSpace
    round_number: int = 0
    png_folder: str | None = None

    def __call__(self, manifest: Mapping[str, Any], ids_HW: NDArray[Any]) -> dict[str, Any]:
        """The row of a mask of contiguous ids, any integer dtype [H, W]."""
        space = self.label_space
        out = mask_row(manifest, ids_HW.astype(space.mask_dtype), space, self.round_number)
        if self.png_folder is not None:
            name = f"{tables.check_image_id(manifest['image_id'])}.png"
            storage.write_bytes(storage.join(self.png_folder, name), out["mask_png"])
        return out
