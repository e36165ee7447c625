"""What a plan knows of trainings: a short version of each, and the time of the long one.

The stage of a training is `train_<section>`.
"""

from __future__ import annotations

from typing import Any

from pmm_ray.config import MulticropConfig, RunConfig, SegmenterConfig, TrainingConfig
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.core.selection import base_name
from pmm_ray.runtime.training.workers import count_workers

# Steps of a training: the first one is left out of its throughput.
_STEPS = 4
# A timed step on a CPU takes about so many px per worker, and at least two images.
_STEP_PIXELS = 500_000


def training_section(config: RunConfig, stage: str) -> Any:
    """The section of a training stage, `train_segmenter-r1` -> `config.segmenter`; or None."""
    section = getattr(config, base_name(stage).removeprefix("train_"), None)
    return section if isinstance(section, TrainingConfig) else None


def short_training(section: Any, cluster: ClusterResources, images: int) -> dict[str, Any]:
    """The fields that make a few steps of a training, each like those of the whole.

    Args:
        images: of the training split, in the sample.
    """
    name = type(section).__name__.removesuffix("Config").lower()
    workers = count_workers(name, section, cluster)
    batch = section.batch_size
    side = section.crops.size if isinstance(section, MulticropConfig) else section.crop_size
    on_cpus = cluster.gpus < 1
    if on_cpus:
        batch = min(batch, max(2, _STEP_PIXELS // side**2) * workers)
    # the weights stay as they are: no map of an untrained network that is not finite
    update = {
        "workers": workers,
        "batch_size": batch,
        "learning_rate": 1e-9,
        "checkpoint_seconds": 1e9,
    }
    if not _weights_are_here(section):
        update["weights"] = "none"
    if on_cpus:
        update["accumulate"] = 1
    if isinstance(section, SegmenterConfig):
        often = _STEPS // 2 if section.validate_every < section.iterations else _STEPS
        short = {"iterations": _STEPS, "min_learning_rate": 0.0, "validate_every": often}
        return update | short
    return update | {"epochs": -(-_STEPS // max(1, images // batch))}


def _weights_are_here(section: Any) -> bool:
    """A recipe can be planned before its public weights are downloaded."""
    from pmm_ray.nets.weight_files import pretrained_file

    try:
        uri = pretrained_file(section)
    except CannotRunError:
        return False
    return uri is None or storage.exists(uri)


def training_length(section: Any, images: int, held_out: int, with_truth: int) -> tuple[int, int]:
    """(images that all steps take, images that all validations take) of a whole training.

    Args:
        images: of the training split.
        held_out: images of the held-out split.
        with_truth: those of them that have a ground-truth mask.
    """
    validated = validated_images(section, held_out, with_truth)
    if isinstance(section, SegmenterConfig):
        count = -(-section.iterations // section.validate_every)
        return section.iterations * section.batch_size, count * validated
    steps = section.steps(max(1, images // section.batch_size))
    return steps * section.batch_size, section.epochs * validated


def validated_images(section: Any, held_out: int, with_truth: int) -> int:
    """Images of one validation; 0 where the training has none."""
    wanted = getattr(section, "validation_images", 0)
    if not isinstance(section, SegmenterConfig):
        return min(held_out, wanted)
    if section.validate_every >= section.iterations:
        return 0  # it would be the only one, and is left out
    return with_truth if wanted is None else min(with_truth, wanted)
