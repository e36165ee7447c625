"""Activation maps as rows of the cams table: how they are written, read and checked."""

# K: present classes; h, w: the stored CAM; H, W: image.

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pmm_ray.method.cams import upsample_cam
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.index import TableIndex, read_index
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.mapping.workers import InputRow

StoredCam = tuple[list[int], NDArray[Any]]
"""Class ids, and floating [K, h, w]."""
ReadCam = Callable[[InputRow], StoredCam]
"""How the CAM of a row is read: of our own table, or what others made (`pmm masks`)."""


def decode_cam(row: Mapping[str, Any]) -> NDArray[np.float16]:
    """The float16 [K, h, w] array of a row of the cams table."""
    shape = (len(row["labels"]), row["cam_height"], row["cam_width"])
    return np.frombuffer(row["cam"], "<f2").reshape(shape)


def table_cam(row: InputRow) -> StoredCam:
    """Labels and CAM of a row of our own cams table."""
    return row["cams"]["labels"], decode_cam(row["cams"])


@dataclass(frozen=True)
class Cams:
    """Where the CAMs of some images are, or what makes them.

    Attributes:
        index: of the table; of the manifest where the CAMs are streamed.
        hash: of what made them.
        read: how the CAM of a row is read.
        streamed_from: the classifier that makes them on the way; None: they are stored.
    """

    index: TableIndex
    hash: str
    read: ReadCam = table_cam
    streamed_from: str | None = None

    @classmethod
    def of(cls, folder: StageFolder) -> Cams:
        """A finished table of ours."""
        return cls(read_index(folder.uri), folder.hash)

    def select(self, image_ids: Iterable[str]) -> Cams:
        """The CAMs of some of the images."""
        return replace(self, index=self.index.select(image_ids))


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


def walked_mask(row: Mapping[str, Any], height: int, width: int) -> NDArray[np.int64]:
    """The class with the largest score after a random walk, ids int64 [height, width].

    Args:
        row: of the table of `walk_cams`, which keeps the background's score and each class's peak.
        height, width: of the image, px.

    Source: released code.
    """
    scale_K = np.array(row["peaks"], np.float32)[:, None, None]
    scores_Khw = decode_cam(row).astype(np.float32) * scale_K
    background_hw = np.frombuffer(row["background"], "<f2").reshape(scores_Khw.shape[1:])
    maps = (background_hw.astype(np.float32), *scores_Khw)
    best = np.argmax(
        [cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in maps], axis=0
    )
    return np.array([0, *row["labels"]])[best]
