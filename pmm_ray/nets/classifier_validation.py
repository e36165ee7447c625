"""How well a classifier ranks held-out images, and how well its maps cover the objects.

The training reports it after every epoch; it decides nothing.
"""

# C: foreground classes; K: present ones; T: background scores tried.

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pmm_ray.method.cams import normalize, upsample_cam
from pmm_ray.method.confusion import Confusion, confusion_matrix, mean_score
from pmm_ray.method.precision import average_precision
from pmm_ray.nets.cam_network import CamNetwork, present_classes
from pmm_ray.nets.seam import SeamNetwork
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.rows.photographs import Photographs, with_long_side
from pmm_ray.runtime.training.mask_file import Told
from pmm_ray.runtime.training.sampling import telling, validation_rows

BACKGROUND_SCORES = tuple(round(0.05 * i, 2) for i in range(1, 13))
"""A px whose scores are all below one of these is background; the best of them is reported."""


@dataclass
class ClassifierShare:
    """What one worker measured."""

    scores: list[NDArray[np.float32]] = field(default_factory=list)
    """Image-level scores [C] of each image."""
    labels: list[list[int]] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    """int64 [T, C + 1, C + 1] of all images with truth; empty or one."""


@dataclass(frozen=True)
class ClassifierValidation:
    """Scores a network on a sample of held-out images; small and picklable.

    Attributes:
        manifest_uri: the Parquet file.
        split: the held-out one.
        photographs: how images and truth are read.
        images: how many to score; the seed chooses them.
        long_side: of the resized images, px.
    """

    manifest_uri: str
    split: str
    photographs: Photographs
    images: int
    long_side: int
    seed: int

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the manifest that are scored, see `validation_rows`."""
        return validation_rows(self.manifest_uri, self.split, "labels", self.images, self.seed)

    @torch.no_grad()
    def measure(
        self,
        network: CamNetwork,
        device: torch.device,
        rank: int,
        world: int,
        told: Told | None = None,
    ) -> ClassifierShare:
        """Score this worker's share of the images with a network in evaluation mode.

        An image that cannot be used is left out, and so are the maps of one whose truth cannot: the
        stage that needs it records it. `told` is called before each image: (done, images of the
        share).
        """
        share, space = ClassifierShare(), self.photographs.label_space
        classes = space.num_classes
        total = np.zeros((len(BACKGROUND_SCORES), classes, classes), np.int64)
        scored = False
        for row in telling(self.rows()[rank::world], told):
            try:
                image, labels = self.photographs.image(row), self.photographs.labels(row)
            except RowError:
                continue
            truth = None
            with contextlib.suppress(RowError):
                truth = self.photographs.truth(row) if row["ground_truth_uri"] else None
            scores_C, maps_Khw = _score(network, image, labels, self.long_side, device)
            share.scores.append(scores_C)
            share.labels.append(labels)
            if truth is None or not np.isfinite(maps_Khw).all():
                continue
            cam = upsample_cam(normalize(maps_Khw, "multi_scale"), *truth.shape)
            for t, background in enumerate(BACKGROUND_SCORES):
                predicted = _argmax(cam, labels, background)
                total[t] += confusion_matrix(truth, predicted, classes, space.ignore)
            scored = True
        if scored:
            share.confusions.append(total)
        return share

    def metrics(self, shares: list[ClassifierShare]) -> dict[str, float]:
        """`mean_average_precision`; with truth that holds a class `cam_miou` at its best background
        score, too."""
        scores = [s for share in shares for s in share.scores]
        found: dict[str, float] = {}
        if scores:
            truth_NC = np.zeros((len(scores), self.photographs.label_space.num_foreground), bool)
            for n, labels in enumerate(labels for share in shares for labels in share.labels):
                truth_NC[n, [label - 1 for label in labels]] = True
            finite = np.nan_to_num(np.stack(scores).astype(np.float64))
            precision_C = average_precision(finite, truth_NC)
            found["mean_average_precision"] = float(np.nanmean(precision_C))
        confusions = [c for share in shares for c in share.confusions]
        if confusions:
            total = np.sum(confusions, axis=0)
            # all have the same truth: none has a score, or each
            by_score = [score for score in map(mean_score, total) if score is not None]
            if by_score:
                best = int(np.argmax(by_score))
                found["cam_miou"] = by_score[best]
                found["cam_threshold"] = BACKGROUND_SCORES[best]
        return found


def _score(
    network: CamNetwork,
    image_HW3: NDArray[np.uint8],
    labels: list[int],
    long_side: int,
    device: torch.device,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(image-level scores [C], CAM scores of the present classes [K, h, w])."""
    view = np.ascontiguousarray(with_long_side(image_HW3, long_side).transpose(2, 0, 1))
    batch = normalise_views(
        torch.from_numpy(view)[None].to(device), network.input_mean, network.input_std
    )
    present = present_classes(labels, network.num_foreground)[None].to(device)
    rows = [label - 1 for label in labels]
    if isinstance(network, SeamNetwork):
        cam, refined = network.maps(batch, present)
        scores, maps = cam[:, 1:].mean(dim=(2, 3)), refined[:, 1:]
    else:
        scores, maps = network(batch)
    return scores[0].float().cpu().numpy(), maps[0, rows].float().cpu().numpy()


def _argmax(cam_KHW: NDArray[np.float32], labels: list[int], background: float) -> NDArray[Any]:
    strongest_HW = np.array(labels)[cam_KHW.argmax(axis=0)]
    return np.where(cam_KHW.max(axis=0) > background, strongest_HW, 0)
