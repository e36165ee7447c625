"""SBD, the additional masks of VOC images that `train_aug` is made of: `.mat` files.

    benchmark_RELEASE/dataset/cls/ID.mat     GTcls.Segmentation, uint8 [H, W], 0..20, no void
    benchmark_RELEASE/dataset/{train,val}.txt

Source: Hariharan et al., Semantic Contours from Inverse Detectors, 2011.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.labels import VOC12
from pmm_ray.runtime.core import storage
from pmm_ray.sources.labels.lists import read_members
from pmm_ray.sources.reading.names import file_stem

_PLACES = ("benchmark_RELEASE/dataset", "SBD/benchmark_RELEASE/dataset", "SBD", "sbd")


def find_sbd(*roots: str) -> str | None:
    """The folder with `cls/`, in or beside one of these folders; None if there is none."""
    for root in roots:
        for place in (root, *(storage.join(root, name) for name in _PLACES)):
            if storage.exists(storage.join(place, "cls")):
                return place
    return None


def sbd_masks(folder: str) -> dict[str, str]:
    """The uri of each `.mat` file by image id."""
    return {file_stem(uri): uri for uri in storage.list_files(storage.join(folder, "cls"), ".mat")}


def read_sbd_mask(uri: str) -> NDArray[np.uint8]:
    """The class mask of a `.mat` file, uint8 [H, W], 0..20.

    Raises:
        ValueError: not such a file, or other values; it is named.
        OSError: it cannot be read.
    """
    from scipy.io import loadmat

    data = storage.read_bytes(uri)
    try:
        content: Any = loadmat(
            io.BytesIO(data), variable_names=["GTcls"], squeeze_me=True, struct_as_record=False
        )
        mask = np.asarray(content["GTcls"].Segmentation)
    # a damaged file raises nearly any type
    except Exception as error:
        raise ValueError(f"{uri} is not a mask of SBD: {type(error).__name__} {error}") from error
    if mask.ndim != 2 or mask.dtype.kind not in "ui" or mask.size == 0:
        raise ValueError(f"{uri}: a mask is integers [H, W], got {mask.dtype} {list(mask.shape)}")
    if mask.min() < 0 or mask.max() > VOC12.num_foreground:
        raise ValueError(f"{uri} holds values {mask.min()}..{mask.max()}, not 0..20")
    return np.ascontiguousarray(mask, np.uint8)


def train_aug_ids(sbd: str, train: list[str], val: list[str]) -> list[str]:
    """The ids of `train_aug`: VOC's train and all of SBD, less VOC's val; sorted.

    Args:
        sbd: folder from `find_sbd`, with `train.txt` and `val.txt`.
        train, val: VOC's own lists.
    """
    extra = {
        image_id
        for name in ("train.txt", "val.txt")
        for image_id in read_members(storage.join(sbd, name))[0]
    }
    return sorted(({*train} | extra) - {*val})
