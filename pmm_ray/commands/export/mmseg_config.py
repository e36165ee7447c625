"""The mmsegmentation config of an exported run: plain assignments, nothing left to fill in."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pmm_ray.config import RunConfig, SegmenterConfig, UnderfittingConfig
from pmm_ray.nets.segmenter_config import segmenter_model
from pmm_ray.nets.segmenter_source import backbone_weights, dicts_in, our_backbone, read_model
from pmm_ray.runtime.core.manifest import Manifest

_HEAD = '''"""{name}: exported by PMM-Ray for mmsegmentation 1.x; needs pmm_ray to be installed.

The masks of split {train!r} are pseudo-masks{cyclic}. Batch size and iterations are the run's, for
one GPU{passes}.
"""

'''


@dataclass(frozen=True)
class Tree:
    """Where the exported files are.

    Attributes:
        train: split to learn from.
        held_out: split to validate and test on.
        suffix: of the photographs; empty: each name has its own.
    """

    train: str
    held_out: str
    suffix: str


def config_text(config: RunConfig, manifest: Manifest, tree: Tree, *, cyclic: bool) -> str:
    """The Python source of the config.

    Args:
        config: of the run.
        manifest: names of the classes, and whether photographs are turned.
        tree: where the files are.
        cyclic: whether the masks are a segmenter's predictions: then no under-fitting is pretended
            (paper 4.1).

    Raises:
        CannotRunError: the run's `segmenter.config` cannot be read.
    """
    model, imports = _model(config, manifest, cyclic)
    entries: dict[str, Any] = {
        "default_scope": "mmseg",
        "custom_imports": {"imports": imports, "allow_failed_imports": False},
        "data_root": "{{ fileDirname }}",
        "model": model,
        **_data(config, manifest, tree),
        **_schedule(config),
        "default_hooks": {
            "timer": {"type": "IterTimerHook"},
            "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
            "param_scheduler": {"type": "ParamSchedulerHook"},
            "checkpoint": {
                "type": "CheckpointHook",
                "by_epoch": False,
                "interval": _interval(config),
                "max_keep_ckpts": 2,
            },
            "sampler_seed": {"type": "DistSamplerSeedHook"},
            "visualization": {"type": "SegVisualizationHook"},
        },
        "visualizer": {
            "type": "SegLocalVisualizer",
            "vis_backends": [{"type": "LocalVisBackend"}],
            "name": "visualizer",
        },
        "env_cfg": {
            "cudnn_benchmark": True,
            "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
            "dist_cfg": {"backend": "nccl"},
        },
        "log_processor": {"by_epoch": False},
        "log_level": "INFO",
        "load_from": None,
        "resume": False,
        "randomness": {"seed": config.seed},
    }
    about = ", the predictions of an earlier round" if cyclic else ""
    count = config.segmenter.accumulate
    passes = f"; an update takes {count} iterations of mmengine's" if count > 1 else ""
    head = _HEAD.format(name=config.name, train=tree.train, cyclic=about, passes=passes)
    body = (
        f"{name} = {pprint.pformat(value, width=96, sort_dicts=False)}\n"
        for name, value in entries.items()
    )
    return head + "".join(body)


def _model(config: RunConfig, manifest: Manifest, cyclic: bool) -> tuple[dict[str, Any], list[str]]:
    """The run's network in mmsegmentation's notation, and the modules that it needs."""
    section, space = config.segmenter, manifest.label_space
    source = read_model(section.config) if section.config else None
    if source is not None and section.layout == "dataset":
        _weigh_classes(source.model, space.dataset_ids)
    model = segmenter_model(
        section,
        space.num_classes,
        space.ignore,
        underfitting=UnderfittingConfig(kind="none") if cyclic else section.underfitting,
        source=source,
    )
    weights = section.weights if source is None else backbone_weights(section.weights, source)
    if weights is not None and our_backbone(model):
        model["backbone"]["weights"] = weights
    elif weights is not None:
        model["backbone"]["init_cfg"] = {"type": "Pretrained", "checkpoint": weights}
    predict = config.predict
    model["test_cfg"] = {"mode": "whole"}
    if predict.mode == "slide":
        sides = (predict.crop_size, predict.crop_size), (predict.stride, predict.stride)
        model["test_cfg"] = {"mode": "slide", "crop_size": sides[0], "stride": sides[1]}
    return model, ["pmm_ray.nets.segmenter", *(source.imports if source else ())]


def _weigh_classes(model: dict[str, Any], ids: Sequence[int]) -> None:
    """Weights of the data set's ids become those of its classes, as the export has them."""
    for found in dicts_in(model):
        weights = found.get("class_weight")
        if isinstance(weights, list | tuple) and len(weights) == max(ids) + 1:
            found["class_weight"] = [weights[i] for i in ids]


def _data(config: RunConfig, manifest: Manifest, tree: Tree) -> dict[str, Any]:
    section, space = config.segmenter, manifest.label_space
    colours = [[int(x) for x in space.palette[c]] for c in range(space.num_classes)]
    load: dict[str, Any] = {"type": "LoadImageFromFile"}
    annotations: dict[str, Any] = {"type": "LoadAnnotations", "reduce_zero_label": False}
    crop = (section.crop_size, section.crop_size)
    train: list[dict[str, Any]] = [
        load,
        annotations,
        {
            "type": "RandomResize",
            "scale": section.resize_base,
            "ratio_range": section.resize_ratio,
            "keep_ratio": True,
        },
        {
            "type": "RandomCrop",
            "crop_size": crop,
            "cat_max_ratio": section.cat_max_ratio,
            "ignore_index": space.ignore,
        },
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    test: list[dict[str, Any]] = [
        load,
        {"type": "Resize", "scale": config.predict.resize_base, "keep_ratio": True},
        annotations,
        {"type": "PackSegInputs"},
    ]

    def loader(split: str, pipeline: list[dict[str, Any]], shuffle: bool) -> dict[str, Any]:
        return {
            "batch_size": section.batch_size // section.accumulate if shuffle else 1,
            "num_workers": 2,
            "persistent_workers": True,
            "sampler": {
                "type": "InfiniteSampler" if shuffle else "DefaultSampler",
                "shuffle": shuffle,
            },
            "dataset": {
                "type": "BaseSegDataset",
                "metainfo": {"classes": list(space.names), "palette": colours},
                "data_root": "{{ fileDirname }}",
                "ann_file": f"splits/{split}.txt",
                "data_prefix": {"img_path": f"images/{split}", "seg_map_path": f"masks/{split}"},
                "img_suffix": tree.suffix,
                "seg_map_suffix": ".png",
                "ignore_index": space.ignore,
                "reduce_zero_label": False,
                "pipeline": pipeline,
            },
        }

    held_out = loader(tree.held_out, test, shuffle=False)
    metric = {"type": "IoUMetric", "iou_metrics": ["mIoU"], "ignore_index": space.ignore}
    return {
        "train_dataloader": loader(tree.train, train, shuffle=True),
        "val_dataloader": held_out,
        "test_dataloader": held_out,
        "val_evaluator": metric,
        "test_evaluator": metric,
    }


def _rates(section: SegmenterConfig, steps: int) -> list[dict[str, Any]]:
    rising = round(section.warmup * steps)
    span = {"begin": rising, "end": steps, "by_epoch": False}
    falling: dict[str, Any] = {"type": "PolyLR", "power": section.poly_power}
    if section.schedule == "cosine":
        falling = {"type": "CosineAnnealingLR", "T_max": steps - rising}
    falling |= {"eta_min": min(section.min_learning_rate, section.learning_rate), **span}
    if not rising:
        return [falling]
    first = {"type": "LinearLR", "start_factor": 1 / (rising + 1)}
    return [first | {"begin": 0, "end": rising, "by_epoch": False}, falling]


def _schedule(config: RunConfig) -> dict[str, Any]:
    section = config.segmenter
    optimizer: dict[str, Any] = {"type": "AdamW"}
    if section.optimizer == "sgd":
        optimizer = {"type": "SGD", "momentum": section.momentum}
    rates = {"lr": section.learning_rate, "weight_decay": section.weight_decay}
    wrapper: dict[str, Any] = {
        "type": "OptimWrapper",
        "optimizer": optimizer | rates,
        "accumulative_counts": section.accumulate,
    }
    if section.clip_norm is not None:
        wrapper["clip_grad"] = {"max_norm": section.clip_norm}
    if section.head_multiplier != 1:
        faster = {"lr_mult": section.head_multiplier}
        wrapper["paramwise_cfg"] = {
            "custom_keys": {"decode_head": faster, "auxiliary_head": faster}
        }
    return {
        "optim_wrapper": wrapper,
        "param_scheduler": _rates(section, _iterations(config)),
        "train_cfg": {
            "type": "IterBasedTrainLoop",
            "max_iters": _iterations(config),
            "val_interval": _interval(config),
        },
        "val_cfg": {"type": "ValLoop"},
        "test_cfg": {"type": "TestLoop"},
    }


def _iterations(config: RunConfig) -> int:
    """Those of mmengine: it counts the passes of an update."""
    return config.segmenter.iterations * config.segmenter.accumulate


def _interval(config: RunConfig) -> int:
    """Iterations between validations and between checkpoints."""
    section = config.segmenter
    return min(section.validate_every, section.iterations) * section.accumulate
