"""What a training starts from, tried out before hours go into the stages before it."""

from __future__ import annotations

from typing import Any

import torch

from pmm_ray.config import AffinityConfig, SegmenterConfig, UnderfittingConfig
from pmm_ray.nets.segmenter_config import segmenter_model
from pmm_ray.nets.segmenter_source import ModelSource, classifier_source, read_model
from pmm_ray.nets.weight_files import worker_files

_CLASSES = 2  # the images, which tell their number, are not imported yet


def try_training(section: Any) -> None:
    """Build the network of a training whose weights are a file, or whose model is the user's.

    Args:
        section: of the training.

    Raises:
        CannotRunError: it cannot be built, a file cannot be read, or its weights do not fit.
    """
    has_file = "weights" in worker_files(section)
    if isinstance(section, SegmenterConfig):
        source = None if section.config is None else read_model(section.config)
        try_segmenter(section, source, build=has_file)
    elif isinstance(section, AffinityConfig):
        from pmm_ray.nets.affinity import build_affinity

        if has_file:
            with torch.random.fork_rng(devices=[]):
                build_affinity(section)
    elif has_file or section.model is not None:
        from pmm_ray.nets.registry import build_classifier

        # ImageNet's rows need the names of the classes
        plain = section.model_copy(update={"head_init": "random"})
        with torch.random.fork_rng(devices=[]):
            build_classifier(plain, _CLASSES, classifier_source(section))


def try_segmenter(
    config: SegmenterConfig, source: ModelSource | None, *, build: bool = False
) -> None:
    """Refuse a segmenter that cannot be built; a user's model is trained on two crops.

    Args:
        source: of `config.config`; None: PSPNet.
        build: also build PSPNet, to see whether its weights fit.

    Raises:
        CannotRunError: see `build_segmenter` and `try_model`.
    """
    segmenter_model(config, _CLASSES, 255, source=source)
    if source is None and not build:
        return
    from pmm_ray.nets.segmenter import build_segmenter, try_model

    # two crops are no whole group of under-fitting: the plain loss serves as well
    plain = UnderfittingConfig(kind="none")
    with torch.random.fork_rng(devices=[]):
        network = build_segmenter(config, _CLASSES, 255, underfitting=plain, source=source)
        if source is not None:
            try_model(network, config.crop_size, source.uri)
