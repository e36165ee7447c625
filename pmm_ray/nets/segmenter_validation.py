"""How well a segmenter does on held-out images while it is trained.

Its mIoU may choose the weights that are kept: that uses pixel labels, and the report says so.
"""

# C: classes with the background; H, W: image.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pmm_ray.config import PredictConfig
from pmm_ray.method.confusion import Confusion, confusion_matrix, mean_score
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.rows.scores import pack_scores, refine_row
from pmm_ray.runtime.training.mask_file import Told
from pmm_ray.runtime.training.sampling import telling, validation_rows

MIOU = "validation_miou"
"""Name of what is measured."""
SCORED = "validation_images"
"""Name of the number of images that it was measured on."""


@dataclass(frozen=True)
class SegmenterShare:
    """What one worker measured."""

    confusion: Confusion
    """int64 [C, C]."""
    images: int
    """How many were scored."""


class _HeldOut(NamedTuple):
    """An image that is scored."""

    row: dict[str, Any]
    """Of the manifest."""
    pixels: NDArray[np.uint8]
    """RGB, [H, W, 3]."""
    truth: NDArray[np.uint8]
    """Class ids, [H, W]."""


@dataclass(frozen=True)
class SegmenterValidation:
    """Scores a segmenter on held-out images with ground truth; small and picklable.

    One view of each image, without mirror images and CRF; or, with `predict`, the whole test
    pipeline, as in the released code.

    Attributes:
        manifest_uri: the Parquet file.
        split: the held-out one.
        photographs: how images and truth are read.
        images: how many to score, chosen by the seed; None: all.
        resize_base: (long, short) size of a view, px.
        seed: of the run.
        predict: of the test pipeline; None: one view.
    """

    manifest_uri: str
    split: str
    photographs: Photographs
    images: int | None
    resize_base: tuple[int, int]
    seed: int
    predict: PredictConfig | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the manifest that are scored, see `validation_rows`."""
        return validation_rows(
            self.manifest_uri, self.split, "ground_truth_uri", self.images, self.seed
        )

    @torch.no_grad()
    def measure(
        self,
        network: nn.Module,
        device: torch.device,
        rank: int,
        world: int,
        told: Told | None = None,
    ) -> SegmenterShare:
        """Score this worker's share of the images with a network in evaluation mode.

        An image that cannot be used is left out, see `unusable`; the evaluation makes an error row
        of it. `told` is called before each image: (done, images of the share).
        """
        space = self.photographs.label_space
        total, images = np.zeros((space.num_classes, space.num_classes), np.int64), 0
        masks = self._one_view if self.predict is None else self._tested
        rows = telling(self.rows()[rank::world], told)
        for truth_HW, mask_HW in masks(network, self._readable(rows), device):
            total += confusion_matrix(truth_HW, mask_HW, space.num_classes, space.ignore)
            images += 1
        return SegmenterShare(total, images)

    def metrics(self, shares: list[SegmenterShare]) -> dict[str, float]:
        """mIoU over the classes that have truth, and of how many images; nothing without these.

        Where the truth holds no class there is no mIoU, which would choose the emptiest network.
        """
        images = sum(share.images for share in shares)
        if not images:
            return {}
        score = mean_score(np.sum([share.confusion for share in shares], axis=0))
        return {SCORED: float(images)} | ({} if score is None else {MIOU: score})

    def unusable(self) -> dict[str, str]:
        """Which of the images `measure` leaves out, and why, by reading all of them."""
        found = {}
        for row in self.rows():
            try:
                self._read(row)
            except RowError as error:
                found[row["image_id"]] = f"{error.uri}: {error.message}"
        return found

    def _readable(self, rows: Iterable[dict[str, Any]]) -> Iterator[_HeldOut]:
        for row in rows:
            try:
                image = _HeldOut(row, *self._read(row))
            except RowError:
                continue
            yield image

    def _read(self, row: dict[str, Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image and truth.

        Raises:
            RowError: one cannot be read, or they do not belong together.
        """
        image_HW3, truth_HW = self.photographs.image(row), self.photographs.truth(row)
        if truth_HW.shape != image_HW3.shape[:2]:
            raise RowError(
                "label",
                f"the truth is {truth_HW.shape} and the image {image_HW3.shape[:2]} (h, w)",
                row["ground_truth_uri"],
            )
        return image_HW3, truth_HW

    def _one_view(
        self, network: nn.Module, images: Iterable[_HeldOut], device: torch.device
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        for image in images:
            yield image.truth, self._predict(network, image.pixels, device)

    def _predict(
        self, network: nn.Module, image_HW3: NDArray[np.uint8], device: torch.device
    ) -> NDArray[np.int64]:
        from pmm_ray.nets.segmenter import description_of, predict_logits
        from pmm_ray.nets.segmenter_views import view_size

        height, width = image_HW3.shape[:2]
        rows, columns = view_size(height, width, self.resize_base, 1.0)
        view = cv2.resize(image_HW3, (columns, rows), interpolation=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(view).to(device).permute(2, 0, 1)[None]
        about = description_of(network)
        logits = predict_logits(network, normalise_views(pixels, about.input_mean, about.input_std))
        logits = nn.functional.interpolate(logits, (height, width), mode="bilinear")
        return logits[0].argmax(0).cpu().numpy()

    def _tested(
        self, network: nn.Module, images: Iterable[_HeldOut], device: torch.device
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Truths, and the masks that `predict_masks` would make of held-out images."""
        from pmm_ray.nets.segmenter_views import SegmenterViews, checked, make_views

        config = self.predict
        assert config is not None
        photographs = (
            (image, make_views(image.pixels, config, device), image.truth.shape) for image in images
        )
        for image, mean_CHW in SegmenterViews(network, config, device).probabilities(photographs):
            scores_CHW = checked(mean_CHW.cpu().numpy())
            if not config.use_crf:
                yield image.truth, scores_CHW.argmax(0)
                continue
            classes = np.arange(len(scores_CHW))
            packed = pack_scores(image.row["image_id"], image.pixels, classes, scores_CHW, config)
            height, width = image.truth.shape
            yield image.truth, refine_row(packed, height, width, config)
