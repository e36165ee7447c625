"""A training's workers open the driver's files, whatever their own folder and environment are."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pmm_ray.config import RunConfig
from pmm_ray.nets.weight_files import find_weights
from pmm_ray.nets.weights import read_state
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.training.task import TrainingTask
from pmm_ray.stages.train_affinity import AffinityTask
from pmm_ray.stages.train_classifier import ClassifierTask
from pmm_ray.stages.train_segmenter import SegmenterTask

OWN_ROW = """
from dataclasses import replace
from pmm_ray.config.backbones import BACKBONES, GENERIC_TYPE
LITE = BACKBONES["efficientnet_lite0"]
ROW = replace(LITE, files={"tiny": "tiny.pth"}, mmseg_type=GENERIC_TYPE)
"""
STEM = "conv_stem.weight"


def made(
    kind: type[TrainingTask[Any]], manifest: Manifest, values: dict[str, Any], **own: Any
) -> bytes:
    """The task of a stage with a section of these values, as it is sent to the workers."""
    key = kind.__name__.removesuffix("Task").lower()
    config = RunConfig.model_validate({key: values})
    context: Any = SimpleNamespace(config=config, manifest=manifest)
    folder = StageFolder("nowhere", f"train_{key}", "12345678")
    return pickle.dumps(kind.of(getattr(config, key), context, folder, **own))


def test_workers_elsewhere_start_from_the_drivers_files(
    shapes: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = read_state(str(find_weights("imagenet", "efficientnet_lite0")))
    for place, factor in (("driver", 2), ("node", 3)):
        (tmp_path / place).mkdir()
        torch.save({**state, STEM: state[STEM] * factor}, tmp_path / place / "tiny.pth")
    table = "".join(f"{name}: beagle\n" for name in shapes.label_space.names[1:])
    (tmp_path / "driver" / "names.yaml").write_text(table)
    (tmp_path / "lite_row.py").write_text(OWN_ROW)
    monkeypatch.syspath_prepend(str(tmp_path))
    small = {"channels": 8, "output_stride": 32}
    head = {"head_init": "imagenet", "head_classes": "names.yaml"}

    def go_to(place: str) -> None:
        monkeypatch.chdir(tmp_path / place)
        monkeypatch.setenv("PMM_WEIGHTS", str(tmp_path / place))

    for weights in ("tiny", "tiny.pth"):
        go_to("driver")
        values = {"backbone": "lite_row:ROW", "weights": weights}
        sent = [
            made(ClassifierTask, shapes, values | head),
            made(AffinityTask, shapes, values),
            made(SegmenterTask, shapes, values | small, round=0),
        ]
        go_to("node")
        for task in map(pickle.loads, sent):
            built = task.build().network.state_dict()
            [stem] = [value for name, value in built.items() if name.endswith(STEM)]
            torch.testing.assert_close(stem, state[STEM] * 2)


def test_weights_of_a_package_are_each_nodes_own(shapes: Manifest) -> None:
    for kind, own in ((ClassifierTask, {}), (AffinityTask, {}), (SegmenterTask, {"round": 0})):
        assert pickle.loads(made(kind, shapes, {}, **own)).config.weights == "imagenet"
