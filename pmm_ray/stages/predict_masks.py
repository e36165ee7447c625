"""Masks from the segmenter: multi-scale, flip, softmax mean, dense CRF -> a masks table.

On the training split this is the cyclic relabel (paper 3.5); on unlabelled photographs it is what
`pmm predict` does. Actors that hold the network send what the CRF needs to know of an image to
tasks on every CPU, and nothing of it touches disk.
"""

# C: classes with the background; H, W: image.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from latticecrf.mean_field.merging import mergeable_share
from pmm_ray.config import PredictConfig
from pmm_ray.nets.inference import for_inference
from pmm_ray.nets.segmenter import load_segmenter
from pmm_ray.nets.segmenter_views import SegmenterViews, checked, make_views
from pmm_ray.nets.transfer import OnTheWay, staged
from pmm_ray.nets.weak_labels import SplitScores, split_scores
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import TableIndex
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.overlap import Overlapped
from pmm_ray.runtime.mapping.table_stage import (
    actor_pool,
    cpu_pool,
    network_batch,
    run_table_stage,
)
from pmm_ray.runtime.mapping.workers import InputRow, Producer, Worker
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.masks import MaskOutput, crf_parameters
from pmm_ray.runtime.rows.photographs import Photographs, large_image
from pmm_ray.runtime.rows.scores import (
    SCORES,
    pack_scores,
    refine_worker,
    scores_row,
    task_memory,
)

STAGE = "predict_masks"
CODE_VERSION = 2

# What an image takes a fast GPU at least, and may take a core.
_IMAGE_SECONDS = (0.05, 4.0)
# Scores of a chunk on their way to the CRF, where the network keeps every class possible.
_CHUNK_BYTES = 400e6

Key = TypeVar("Key")


@dataclass(frozen=True)
class Views:
    """What the network takes of a photograph.

    Attributes:
        image: RGB, uint8 [H, W, 3].
        classes: ids of the classes that it may hold, ascending, int64.
        views: from `make_views`.
    """

    image: NDArray[np.uint8]
    classes: NDArray[np.int64]
    views: list[torch.Tensor]


class Scorer:
    """Photographs to class probabilities; loads the network once.

    Args:
        checkpoint_uri: of a segmenter.
        use_gpu: whether the network runs on one.
    """

    def __init__(
        self, checkpoint_uri: str, config: PredictConfig, photographs: Photographs, use_gpu: bool
    ) -> None:
        self.device = torch.device("cuda" if use_gpu else "cpu")
        model, _ = load_segmenter(checkpoint_uri)
        model = for_inference(model, "encode_decode", config, self.device)
        self._views = SegmenterViews(model, config, self.device)
        self.batches = self._views.batches
        self._config = config
        self._photographs = photographs

    def prepare(self, row: InputRow) -> Views:
        """The views of a photograph, on the CPU."""
        manifest = row["manifest"]
        image = self._photographs.image(manifest)
        classes = np.arange(self._photographs.label_space.num_classes)
        if self._config.use_image_labels and manifest["labels"]:
            classes = np.array([0, *self._photographs.labels(manifest)])
        return Views(image, classes, make_views(image, self._config, self.device))

    def scores(
        self, photographs: Iterable[tuple[Key, Views]]
    ) -> Iterator[tuple[Key, Views, torch.Tensor]]:
        """Probabilities of the classes, on the device; waits for nothing.

        Yields:
            (key, views, float32 [C, H, W]), in the order of the photographs.
        """
        keyed = (((key, of), of.views, of.image.shape[:2]) for key, of in photographs)
        for (key, of), scores_CHW in self._views.probabilities(keyed):
            if self._config.use_image_labels:
                allowed_C = staged(of.classes, self.device).to(self.device, non_blocking=True)
                scores_CHW = scores_CHW.index_select(0, allowed_C)
            yield key, of, scores_CHW

    def __call__(
        self, manifest: dict[str, Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
        """RGB uint8 [H, W, 3]; ids of the classes it may hold, ascending; a plane for each."""
        of = self.prepare({"manifest": manifest})
        ((_, _, on_device),) = self.scores([(None, of)])
        (scores_CHW,) = OnTheWay(on_device).arrays()
        return of.image, of.classes, checked(scores_CHW)


def network_worker(
    checkpoint_uri: str, config: PredictConfig, photographs: Photographs, stage: str, use_gpu: bool
) -> Worker:
    """Makes the worker of one actor: photographs to rows of `SCORES`."""
    scorer = Scorer(checkpoint_uri, config, photographs, use_gpu)
    share = mergeable_share(crf_parameters(config.crf))

    def see(
        photographs: Iterable[tuple[int, Views]],
    ) -> Iterator[tuple[int, tuple[Views, torch.Tensor | SplitScores]]]:
        for number, of, scores_CHW in scorer.scores(photographs):
            yield number, (of, split_scores(scores_CHW, share) if use_gpu else scores_CHW)

    def finish(row: InputRow, seen: tuple[Views, torch.Tensor | SplitScores]) -> dict[str, Any]:
        of, scores = seen
        image_id, image_HW3, classes = row["manifest"]["image_id"], of.image, of.classes
        if isinstance(scores, SplitScores):
            kept, planes = scores.fetch()
            return scores_row(image_id, image_HW3, classes[kept], planes)
        return pack_scores(image_id, image_HW3, classes, checked(scores.numpy()), config)

    return Overlapped(stage, scorer.prepare, see, finish, scorer.batches)


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

    def see(
        photographs: Iterable[tuple[int, Views]],
    ) -> Iterator[tuple[int, tuple[Views, OnTheWay]]]:
        for number, of, scores_CHW in scorer.scores(photographs):
            yield number, (of, OnTheWay(scores_CHW.argmax(0), scores_CHW.sum()))

    def finish(row: InputRow, seen: tuple[Views, OnTheWay]) -> dict[str, Any]:
        best_HW, total = seen[1].arrays()
        checked(total)
        return output(row["manifest"], seen[0].classes[best_HW])

    return Overlapped(stage, scorer.prepare, see, finish, scorer.batches)


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
    """Masks of every image of `images` (an index of the manifest) with a segmenter checkpoint."""
    use_gpu = context.cluster.gpus >= 1
    photographs = Photographs.of(context)
    output = MaskOutput(photographs.label_space, round_number, png_folder)
    model = (checkpoint_uri, config, photographs, folder.stage, use_gpu)
    actors, batch = actor_pool(context, config), config.batch_size
    if batch == "auto":
        classes = context.manifest.label_space.num_classes
        planes = max(1.0, 2.0 * classes * large_image(context.manifest.uri))  # float16, bytes
        asked = network_batch(len(images), actors, *_IMAGE_SECONDS)
        batch = max(1, min(asked, int(_CHUNK_BYTES / planes)))
    shape: dict[str, Any] = {
        "inputs": {"manifest": images},
        "schema": tables.MASKS,
        "batch_size": batch,
    }
    if not config.use_crf:
        worker = partial(argmax_worker, *model, output)
        return run_table_stage(context, folder, factory=worker, pool=actors, **shape)
    return run_table_stage(
        context,
        folder,
        factory=partial(refine_worker, config, folder.stage, output),
        pool=cpu_pool(context, memory=task_memory(context)),
        producer=Producer("scores", partial(network_worker, *model), SCORES, actors),
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
        png_folder: see `MaskOutput`.
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
        images=images.ids,
    )
