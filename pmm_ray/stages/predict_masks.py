"""Masks from the segmenter: multi-scale, flip, softmax mean, dense CRF -> a masks table.

On the training split this is the cyclic relabel (paper 3.5); on unlabelled photographs it is what
`pmm predict` does. Actors that hold the network send what the CRF needs to know of an image to
tasks on every CPU, and nothing of it touches disk.
"""

# C: classes with the background; H, W: image.

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pmm_ray.config import PredictConfig
from pmm_ray.nets.segmenter import load_segmenter
from pmm_ray.nets.segmenter_views import mean_probabilities
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import TableIndex
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.chunks import InputRow, Producer, Worker, row_by_row
from pmm_ray.runtime.mapping.table_stage import (
    actor_pool,
    cpu_pool,
    network_batch,
    run_table_stage,
)
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.masks import MaskOutput
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.rows.scores import SCORES, pack_scores, refine_worker, task_memory

STAGE = "predict_masks"
CODE_VERSION = 2

# What an image takes a fast GPU at least, and may take a core.
_IMAGE_SECONDS = (0.05, 4.0)


class Scorer:
    """Photographs to class probabilities; loads the network once.

    Args:
        checkpoint_uri: of a segmenter.
        photographs: how images are found and read.
        use_gpu: whether the network runs on one.
    """

    def __init__(
        self, checkpoint_uri: str, config: PredictConfig, photographs: Photographs, use_gpu: bool
    ) -> None:
        self._device = torch.device("cuda" if use_gpu else "cpu")
        model, _ = load_segmenter(checkpoint_uri)
        self._model = model.to(self._device).eval()
        self._config = config
        self._photographs = photographs

    def __call__(
        self, manifest: dict[str, Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
        """RGB uint8 [H, W, 3]; ids of the classes it may hold, ascending; a plane for each."""
        image = self._photographs.image(manifest)
        scores_CHW = mean_probabilities(image, self._model, self._config, self._device)
        allowed = np.arange(len(scores_CHW))
        if self._config.use_image_labels:
            allowed = np.array([0, *self._photographs.labels(manifest)])
        return image, allowed, np.ascontiguousarray(scores_CHW[allowed])


def score_worker(
    checkpoint_uri: str, config: PredictConfig, photographs: Photographs, stage: str, use_gpu: bool
) -> Worker:
    """Makes the worker of one actor: photographs to rows of `SCORES`."""
    scorer = Scorer(checkpoint_uri, config, photographs, use_gpu)

    def score(row: InputRow) -> dict[str, Any]:
        return pack_scores(row["manifest"]["image_id"], *scorer(row["manifest"]), config)

    return row_by_row(stage, score)


def argmax_worker(
    checkpoint_uri: str,
    config: PredictConfig,
    photographs: Photographs,
    stage: str,
    use_gpu: bool,
    output: MaskOutput,
) -> Worker:
    """Makes the worker of one actor where no CRF is wanted: photographs to masks."""
    scorer = Scorer(checkpoint_uri, config, photographs, use_gpu)

    def make(row: InputRow) -> dict[str, Any]:
        _, classes, scores_CHW = scorer(row["manifest"])
        return output(row["manifest"], classes[scores_CHW.argmax(0)])

    return row_by_row(stage, make)


def run(
    config: PredictConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    images: TableIndex,
    checkpoint_uri: str,
    round_number: int,
    png_folder: str | None = None,
) -> Summary:
    """Masks of every image of `images` (an index of the manifest) with a segmenter checkpoint.

    With `png_folder` each mask is also written there as `<image_id>.png`.
    """
    use_gpu = context.cluster.gpus >= 1
    photographs = Photographs.of(context)
    output = MaskOutput(photographs.label_space, round_number, png_folder)
    model = (checkpoint_uri, config, photographs, folder.stage, use_gpu)
    actors = actor_pool(context, config.actors)
    shape: dict[str, Any] = {
        "inputs": {"manifest": images},
        "schema": tables.MASKS,
        "batch_size": config.batch_size
        if config.batch_size != "auto"
        else network_batch(len(images), actors, *_IMAGE_SECONDS),
    }
    if not config.use_crf:
        worker = partial(argmax_worker, *model, output)
        return run_table_stage(context, folder, factory=worker, pool=actors, **shape)
    return run_table_stage(
        context,
        folder,
        factory=partial(refine_worker, config, folder.stage, output),
        pool=cpu_pool(context, memory=task_memory(context)),
        producer=Producer("scores", partial(score_worker, *model), SCORES, actors),
        **shape,
    )


@dataclass(frozen=True)
class Model:
    """A trained segmenter: its file, and what it is known by."""

    uri: str
    identity: str

    @classmethod
    def of(cls, segmenter: StageFolder) -> Model:
        """What a finished training made."""
        return cls(segmenter.path("model.pt"), segmenter.result)


def stage(
    config: PredictConfig,
    data: DataSet,
    segmenter: Model,
    images: TableIndex,
    *,
    round: int = 0,
    name: str = STAGE,
    png_folder: str | None = None,
) -> Stage:
    """The masks of some images by a trained segmenter.

    Args:
        segmenter: the trained one.
        images: rows of the manifest.
        round: the cyclic round.
        png_folder: see `run`.
    """
    return Stage(
        name,
        (config, data.hash, segmenter.identity, CODE_VERSION),
        partial(
            run,
            config,
            images=images,
            checkpoint_uri=segmenter.uri,
            round_number=round,
            png_folder=png_folder,
        ),
        rows=len(images),
    )
