"""mmsegmentation's training augmentation as a function of its arguments.

Legend: H, W = image px, S = side of the crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmm_ray.config import SegmenterConfig
from pmm_ray.nets.segmenter_source import quiet

with quiet():
    from mmcv.transforms import RandomFlip, RandomResize
    from mmseg.datasets.transforms import PhotoMetricDistortion, RandomCrop

Transform = Callable[[NDArray[np.uint8], NDArray[Any], int], tuple[Tensor, Tensor]]


def training_transform(
    config: SegmenterConfig,
    ignore_index: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Transform:
    """mmsegmentation's training augmentation as a function of (image, mask, seed).

    Random resize, crop (chosen again while one class fills more than `cat_max_ratio`), mirror,
    photometric distortion, normalisation, padding with zeros and `ignore_index`.

    Args:
        config: sizes and ranges.
        ignore_index: mask value without loss.
        mean, std: of the input, RGB in 0..1; see `input_statistics`.

    Returns:
        `transform(image_HW3 uint8 RGB, mask_HW ids, seed 0..2**32 - 1)` -> (float32 [3, S, S],
        int64 [S, S]), S = `config.crop_size`. It seeds NumPy's global generator, which the
        transforms use: the result depends on its arguments only.
    """
    steps = [
        RandomResize(config.resize_base, ratio_range=config.resize_ratio, keep_ratio=True),
        RandomCrop(config.crop_size, config.cat_max_ratio, ignore_index),
        RandomFlip(prob=0.5),
        PhotoMetricDistortion(),
    ]
    mean_3, std_3 = np.array(mean, np.float32), np.array(std, np.float32)
    side = config.crop_size

    def transform(
        image_HW3: NDArray[np.uint8], mask_HW: NDArray[Any], seed: int
    ) -> tuple[Tensor, Tensor]:
        np.random.seed(seed)
        # mmcv works on BGR
        results: dict[str, Any] = {
            "img": np.ascontiguousarray(image_HW3[:, :, ::-1]),
            "img_shape": image_HW3.shape[:2],
            "gt_seg_map": mask_HW,
            "seg_fields": ["gt_seg_map"],
        }
        for step in steps:
            results = step(results)
        rgb_HW3, ids_HW = results["img"][:, :, ::-1], results["gt_seg_map"]
        height, width = ids_HW.shape
        image_3SS = np.zeros((3, side, side), np.float32)
        image_3SS[:, :height, :width] = ((rgb_HW3 / np.float32(255) - mean_3) / std_3).transpose(
            2, 0, 1
        )
        mask_SS = np.full((side, side), ignore_index, np.int64)
        mask_SS[:height, :width] = ids_HW
        return torch.from_numpy(image_3SS), torch.from_numpy(mask_SS)

    return transform
