"""Class scores -> masks: what the tasks of `predict_masks` do. Imports neither torch nor mmseg."""

# K: classes that the CRF gets; H, W: image.

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from latticecrf import DenseCrf, merge_weak_labels
from pmm_ray.config import PredictConfig
from pmm_ray.runtime.cluster.placement import mask_memory
from pmm_ray.runtime.core.stage import RunContext
from pmm_ray.runtime.core.tables import BYTES, INT32, TEXT, columns
from pmm_ray.runtime.mapping.workers import InputRow, Worker, row_by_row
from pmm_ray.runtime.rows.masks import MaskOutput, crf_parameters
from pmm_ray.runtime.rows.photographs import large_image

# What an actor sends of one image. `scores` is float16 [K, H, W], one plane for each of `labels`,
# or [K + 1, H, W]: then the last one is the sum of all other classes. `pixels` is the photograph,
# RGB uint8 [H, W, 3], so that it is read once.
SCORES = columns(image_id=TEXT, pixels=BYTES, labels=pa.list_(INT32), scores=BYTES)
# The joint CRF holds about four float32 of a class at each pixel; `mask_memory` counts 300 bytes a
# pixel without them.
_CLASSES_PER_UNIT = 15


def pack_scores(
    image_id: str,
    image_HW3: NDArray[np.uint8],
    classes: NDArray[np.int64],
    scores_CHW: NDArray[np.float32],
    config: PredictConfig,
) -> dict[str, Any]:
    """A row of `SCORES`: the classes that can matter to the joint CRF.

    Args:
        image_HW3: RGB, uint8.
        classes: ids of the classes that the image may hold, int64 [C].
        scores_CHW: their probabilities, float32 [C, H, W].
        config: the CRF's parameters.
    """
    kept, planes = merge_weak_labels(scores_CHW, crf_parameters(config.crf))
    return scores_row(image_id, image_HW3, classes[kept], planes)


def scores_row(
    image_id: str, image_HW3: NDArray[np.uint8], labels: NDArray[np.int64], planes: NDArray[Any]
) -> dict[str, Any]:
    """A row of `SCORES` of classes that were chosen already.

    Args:
        image_HW3: RGB, uint8.
        labels: ids of the classes, int64 [K].
        planes: floating [K, H, W] or [K + 1, H, W], see `SCORES`.
    """
    return {
        "image_id": image_id,
        "pixels": np.ascontiguousarray(image_HW3).tobytes(),
        "labels": labels.tolist(),
        "scores": planes.astype("<f2", copy=False).tobytes(),
    }


def refine_row(
    row: dict[str, Any], height: int, width: int, config: PredictConfig
) -> NDArray[np.int64]:
    """Class ids [H, W] of a row of `SCORES`: the joint CRF, then the strongest class."""
    image = np.frombuffer(row["pixels"], np.uint8).reshape(height, width, 3)
    planes = np.frombuffer(row["scores"], "<f2").reshape(-1, height, width).astype(np.float32)
    labels = np.array(row["labels"], np.int64)
    if len(planes) > 1:
        planes = DenseCrf(image, crf_parameters(config.crf), config.backend).joint(planes)
    return labels[planes[: len(labels)].argmax(0)]


def refine_worker(config: PredictConfig, stage: str, output: MaskOutput) -> Worker:
    """Makes the worker of one task: rows of `SCORES` to masks."""

    def make(row: InputRow) -> dict[str, Any]:
        manifest = row["manifest"]
        ids_HW = refine_row(row["scores"], manifest["height"], manifest["width"], config)
        return output(manifest, ids_HW)

    return row_by_row(stage, make)


def task_memory(context: RunContext) -> int:
    """Bytes that a task reserves, for the worst case: a network that keeps every class possible."""
    share = 1 + context.manifest.label_space.num_classes / _CLASSES_PER_UNIT
    return mask_memory(share * large_image(context.manifest.uri), context.cluster.node_memory)
