"""GPU time of stages that no GPU timed: from counted operations and a table of cards.

Only networks are counted. Reading, resizing and writing are the CPUs', and should not keep a GPU
waiting; validations while training are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from pmm_ray.commands.plan.cards import CARDS, seconds_on
from pmm_ray.commands.plan.estimate import Cost
from pmm_ray.commands.plan.trainings import training_length, training_section
from pmm_ray.config import (
    AnyClassifierConfig,
    CamsConfig,
    MulticropConfig,
    PredictConfig,
    RunConfig,
    SegmenterConfig,
)
from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core.selection import base_name

Ask = Callable[[Tensor], Any]
Views = Mapping[tuple[int, int], int]
"""(rows, columns) of a view, px -> how many there are of it, an image."""

# weights are read once for so many views
_BATCH = 8
# a backward pass computes the gradients of inputs and of weights
_WITH_BACKWARD = 3
_UNCOUNTED = ("train_affinity", "walk_cams")


class _Work(NamedTuple):
    """What a stage does for an image."""

    network: Callable[[], Ask]
    views: Views
    bfloat16: bool
    passes: int = 1


def gpu_hours(
    config: RunConfig, costs: Sequence[Cost], size: tuple[int, int], space: LabelSpace
) -> dict[str, dict[str, float] | str]:
    """Hours of one GPU for each training, CAM and prediction stage.

    Args:
        costs: of all stages: which there are, of how many images.
        size: height and width of a usual photograph, px.

    Returns:
        Stage -> card -> hours; or why they cannot be computed.
    """
    seconds: dict[str, dict[str, float] | str] = {}
    found: dict[str, dict[str, float] | str] = {}
    for cost in costs:
        kind = base_name(cost.stage)
        if kind in _UNCOUNTED:
            found[cost.stage] = "the affinity network's operations are not counted"
            continue
        work = _work(config, kind, size, space)
        if work is None or not cost.timed:
            continue
        if kind not in seconds:
            try:
                seconds[kind] = _image_seconds(work)
            # whatever a network of the user's raises where nothing is really computed
            except Exception as error:
                seconds[kind] = f"{type(error).__name__}: {str(error)[:120]}"
        of_an_image, images = seconds[kind], float(cost.images)
        training = training_section(config, cost.stage)
        if training is not None:
            images, _ = training_length(training, cost.images, 0, 0)
        found[cost.stage] = (
            of_an_image
            if isinstance(of_an_image, str)
            else {card: images * taken / 3600 for card, taken in of_an_image.items()}
        )
    return found


def _image_seconds(work: _Work) -> dict[str, float]:
    from pmm_ray.nets.operations import operations

    ask = work.network()
    counted = [(operations(ask, (_BATCH, 3, *view)), n) for view, n in work.views.items()]
    return {
        name: sum(
            n * work.passes * seconds_on(card, done, bfloat16=work.bfloat16) / _BATCH
            for done, n in counted
        )
        for name, card in CARDS.items()
    }


def _work(config: RunConfig, kind: str, size: tuple[int, int], space: LabelSpace) -> _Work | None:
    training = training_section(config, kind)
    if training is not None:
        network = _segmenter if isinstance(training, SegmenterConfig) else _classifier
        made = partial(network, training, space)
        return _Work(made, _training_views(training), training.amp, _WITH_BACKWARD)
    if kind == "predict_masks":
        asked = config.predict.precision != "float32"
        made = partial(_segmenter, config.segmenter, space)
        return _Work(made, _predict_views(config.predict, *size), asked)
    streamed = kind == "make_masks" and config.streams_cams
    if kind in ("make_cams", "make_base_cams") or streamed:
        base = kind == "make_base_cams"
        cams = config.base.cams if base else config.cams
        second = config.multicrop.enabled and not base
        made = partial(_classifier, config.multicrop if second else config.classifier, space)
        return _Work(made, _cam_views(cams, *size), cams.precision != "float32")
    return None


def _cam_views(config: CamsConfig, height: int, width: int) -> Views:
    from pmm_ray.nets.scale_cams import view_sizes
    from pmm_ray.nets.views import crop_windows

    sides = 1 + config.flip
    if config.kind == "multi_scale":
        sizes = view_sizes(height, width, config)
        return Counter({size: sizes.count(size) * sides for size in sizes})
    shrink = min(1.0, config.max_long / max(height, width))
    windows = crop_windows(round(height * shrink), round(width * shrink), config.crops)
    return Counter({(config.crops.size,) * 2: sides * sum(map(len, windows))})


def _predict_views(config: PredictConfig, height: int, width: int) -> Views:
    from pmm_ray.nets.segmenter_views import view_size, window_starts

    found: Counter[tuple[int, int]] = Counter()
    for ratio in config.ratios:
        view, number = view_size(height, width, config.resize_base, ratio), 1
        if config.mode == "slide":
            for side in view:
                number *= len(window_starts(side, config.crop_size, config.stride))
            view = min(view[0], config.crop_size), min(view[1], config.crop_size)
        found[view] += number * (1 + config.flip)
    return found


def _training_views(section: Any) -> Views:
    """The crop; SEAM sees it a second time, smaller."""
    from pmm_ray.method.seam_losses import SIAMESE_SCALE

    side = section.crops.size if isinstance(section, MulticropConfig) else section.crop_size
    views = {(side, side): 1}
    if getattr(section, "kind", None) == "seam":
        views[(int(side * SIAMESE_SCALE),) * 2] = 1
    return views


def _classifier(section: AnyClassifierConfig, space: LabelSpace) -> Ask:
    import torch

    from pmm_ray.nets.registry import build_classifier
    from pmm_ray.nets.segmenter_source import classifier_source

    bare = section.model_copy(update={"weights": "none", "head_init": "random"})
    network = build_classifier(bare, space.num_foreground, classifier_source(section)).eval()
    return lambda images: network.cam_scores(images, torch.ones(len(images), space.num_foreground))


def _segmenter(section: SegmenterConfig, space: LabelSpace) -> Ask:
    from pmm_ray.nets.segmenter import build_segmenter, predict_logits
    from pmm_ray.nets.segmenter_source import read_model

    source = None if section.config is None else read_model(section.config)
    bare = section.model_copy(update={"weights": "none"})
    network = build_segmenter(bare, space.num_classes, space.ignore, source=source).eval()
    return partial(predict_logits, network)
