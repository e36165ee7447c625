"""Activation maps as rows of the cams table: how they are written, read and checked."""

# K: present classes; h, w: the stored CAM; H, W: image.

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.method.cams import upsample_cam
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.mapping.stream import InputRow

StoredCam = tuple[list[int], NDArray[Any]]
"""Class ids, and floating [K, h, w]."""
ReadCam = Callable[[InputRow], StoredCam]
"""How the CAM of a row is read: of our own table, or what others made (`pmm masks`)."""


def cam_row(manifest: Mapping[str, Any], cam_Khw: NDArray[Any]) -> dict[str, Any]:
    """A row of the cams table.

    Args:
        manifest: the image's row of the manifest, whose labels the maps belong to.
        cam_Khw: floating, 0..1; stored as float16.
    """
    return {
        "image_id": manifest["image_id"],
        "height": manifest["height"],
        "width": manifest["width"],
        "labels": [int(label) for label in manifest["labels"]],
        "cam": cam_Khw.astype("<f2").tobytes(),
        "cam_height": cam_Khw.shape[1],
        "cam_width": cam_Khw.shape[2],
    }


def decode_cam(row: Mapping[str, Any]) -> NDArray[np.float16]:
    """The float16 [K, h, w] array of a row of the cams table."""
    shape = (len(row["labels"]), row["cam_height"], row["cam_width"])
    return np.frombuffer(row["cam"], "<f2").reshape(shape)


def table_cam(row: InputRow) -> StoredCam:
    """Labels and CAM of a row of our own cams table."""
    return row["cams"]["labels"], decode_cam(row["cams"])


def cam_at(
    size: tuple[int, int], row: InputRow, read_cam: ReadCam = table_cam
) -> tuple[list[int], NDArray[np.float32]]:
    """Labels and CAM of a row at the size of its image.

    Args:
        size: rows and columns, px.
        row: with the CAM.
        read_cam: how it is read.

    Returns:
        Class ids, and float32 [K, *size], 0..1.

    Raises:
        RowError: `nonfinite`.
    """
    labels, stored_Khw = read_cam(row)
    if not np.isfinite(stored_Khw).all():
        raise RowError("nonfinite", "the CAM holds NaN or infinity")
    return labels, upsample_cam(stored_Khw, *size)
