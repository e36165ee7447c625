"""The full recipes on two made-up images: every stage, one step, random weights.

`TINY` alone makes them small: what a recipe says about order, kinds and rules stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pmm_ray.commands.plan import plan_recipe
from pmm_ray.commands.run import run_recipe
from pmm_ray.config import load_recipe
from pmm_ray.labels import COCO14, VOC12
from pmm_ray.report.run_data import load_run
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import read_index
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.rows.images import encode_mask

from ..rehearsal import planned

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RECIPES = Path(__file__).parents[2] / "recipes"
HEIGHT, WIDTH = 60, 88
TRAINING = {"weights": "none", "batch_size": 2, "workers": 1}
CLASSIFIER = TRAINING | {"epochs": 1, "resize_long": [64, 96], "crop_size": 64}
CROPS = {"scales": [0.75, 1.5], "size": 64, "stride": 44}
TINY: dict[str, dict[str, Any]] = {
    "classifier": CLASSIFIER,
    "base": {"cams.scales": [1.0], "threshold": 0.5},
    "multicrop": TRAINING | {"epochs": 1, **{f"crops.{name}": v for name, v in CROPS.items()}},
    "cams": {f"crops.{name}": value for name, value in CROPS.items()},
    "segmenter": TRAINING
    | {"iterations": 1, "crop_size": 64, "resize_base": [128, 64], "channels": 16},
    "predict": {"ratios": [1.0], "resize_base": [128, 64]},
}


def settings(root: Path, **more: dict[str, Any]) -> list[str]:
    """`TINY` and more of it as `--set` values."""
    found = [f"data.root={root}"]
    for section in {**TINY, **more}:
        values = {**TINY.get(section, {}), **more.get(section, {})}
        found += [f"{section}.{name}={json.dumps(value)}" for name, value in values.items()]
    return found


def photograph(seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (4, 6, 3), np.uint8)
    return Image.fromarray(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


def voc_tree(root: Path) -> Path:
    """Two training images and one held-out image with two objects each."""
    voc = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClassAug", "Annotations", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for number, name in enumerate(("a", "b", "c")):
        photograph(number).save(voc / f"JPEGImages/{name}.jpg")
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[10:40, 8:40], mask[20:55, 50:80] = 8, 15
        (voc / f"SegmentationClassAug/{name}.png").write_bytes(encode_mask(mask, VOC12))
        objects = "".join(f"<object><name>{VOC12.names[i]}</name></object>" for i in (8, 15))
        text = f"<annotation><filename>{name}.jpg</filename>{objects}</annotation>"
        (voc / f"Annotations/{name}.xml").write_text(text)
    (voc / "ImageSets/Segmentation/train_aug.txt").write_text("a\nb\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("c\n")
    return root


def coco_tree(root: Path) -> Path:
    """The same with COCO's names and annotation files."""
    categories = [
        {"id": i, "name": name, "supercategory": "x"}
        for i, name in zip(COCO14.dataset_ids[1:], COCO14.names[1:], strict=True)
    ]
    polygons = {1: [8, 10, 40, 10, 40, 40, 8, 40], 90: [50, 20, 80, 20, 80, 55, 50, 55]}
    (root / "annotations").mkdir(parents=True)
    for split, numbers in (("train", (1, 2)), ("val", (3,))):
        images, annotations = [], []
        (root / f"{split}2014").mkdir()
        for number in numbers:
            name = f"COCO_{split}2014_{number:012d}.jpg"
            photograph(number).save(root / f"{split}2014" / name)
            size = {"height": HEIGHT, "width": WIDTH}
            images.append({"id": number, "file_name": name, **size})
            annotations += [
                {
                    "id": 100 * number + category,
                    "image_id": number,
                    "category_id": category,
                    "segmentation": [polygon],
                    "iscrowd": 0,
                }
                for category, polygon in polygons.items()
            ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/instances_{split}2014.json").write_text(json.dumps(content))
    return root


TREES: dict[str, Callable[[Path], Path]] = {"voc12": voc_tree, "coco14": coco_tree}


def tree(recipe: str, folder: Path) -> Path:
    return TREES[recipe.removesuffix("-released")](folder)


def check_run(run_dir: Path, recipe: str, chosen: list[str]) -> None:
    """Every stage of the plan is done, and no image was lost on the way."""
    config = load_recipe(RECIPES / f"{recipe}.yaml", chosen)
    run = load_run(str(run_dir))
    assert [stage.stage for stage in run.stages] == list(planned(config))
    for stage in run.stages:
        assert stage.summary is not None, stage.stage
        assert stage.summary.errors == 0, (stage.stage, stage.errors)
        if stage.stage.startswith("train_"):
            assert stage.summary.details["steps"] == 1
            assert np.isfinite(stage.summary.metrics["loss"])
    by_name = {stage.stage: stage.folder for stage in run.stages}
    assert len(read_index(by_name["make_cams"].uri)) == 3
    if config.multicrop.enabled:
        assert len(read_index(by_name["make_base_masks"].uri)) == 2
    # each classifier is validated after its epoch
    trained = [s.stage for s in run.stages if s.stage in ("train_classifier", "train_multicrop")]
    validated = {str(event["stage"]): event for event in read_events(str(run_dir), "validation")}
    assert all("cam_miou" in validated[stage] for stage in trained)


@pytest.mark.parametrize("recipe", ["voc12", "coco14"])
def test_the_small_backbone_up_to_its_masks(
    ray_session: ClusterResources, tmp_path: Path, recipe: str
) -> None:
    """The order of the paper's first half, with both classifiers on EfficientNet-lite0."""
    small = {"backbone": "efficientnet_lite0"}
    chosen = settings(tree(recipe, tmp_path / "data"), classifier=small, multicrop=small)
    run_dir = tmp_path / "run"
    place, file = str(run_dir), RECIPES / f"{recipe}.yaml"
    assert run_recipe(file, run_dir=place, settings=chosen, last="make_cams") == 0
    stages = {stage.stage: stage for stage in load_run(place).stages}
    plan = planned(load_recipe(file, chosen))
    assert list(stages) == list(plan[: plan.index("make_cams") + 1])
    assert all(stage.summary is not None for stage in stages.values())
    # nothing runs twice; another rule of relabelling re-runs what comes after it, and no more
    folders = {name: stage.folder.uri for name, stage in stages.items()}
    chosen += ["multicrop.relabel_share=0.2"]
    assert run_recipe(file, run_dir=place, settings=chosen, last="make_cams") == 0
    again = {stage.stage: stage.folder.uri for stage in load_run(place).stages}
    changed = {name for name in plan if name in again and again[name] != folders[name]}
    assert changed == {"train_multicrop", "make_cams"}


@pytest.mark.parametrize("backbone", ["resnet38", "scalenet101", "res2net101"])
@pytest.mark.parametrize("recipe", ["voc12", "coco14"])
def test_every_stage_on_every_backbone(
    ray_session: ClusterResources, tmp_path: Path, recipe: str, backbone: str
) -> None:
    network = {"backbone": backbone}
    chosen = settings(
        tree(recipe, tmp_path / "data"), classifier=network, multicrop=network, segmenter=network
    )
    run_dir = tmp_path / "run"
    file = RECIPES / f"{recipe}.yaml"
    assert run_recipe(file, run_dir=str(run_dir), settings=chosen) == 0
    check_run(run_dir, recipe, chosen)


@pytest.mark.parametrize("recipe", ["voc12", "voc12-released", "coco14", "coco14-released"])
def test_recipes_as_they_are_and_their_plan(
    ray_session: ClusterResources, tmp_path: Path, recipe: str
) -> None:
    """The recipe's own backbones."""
    chosen = settings(tree(recipe, tmp_path / "data"))
    run_dir, file = tmp_path / "run", RECIPES / f"{recipe}.yaml"
    assert plan_recipe(file, run_dir=str(run_dir), settings=chosen, sample=3) == 0
    planned = json.loads((run_dir / "plan.json").read_text())
    assert run_recipe(file, run_dir=str(run_dir), settings=chosen) == 0
    check_run(run_dir, recipe, chosen)
    stages = [cost["stage"] for cost in planned["stages"]]
    assert {stage.stage for stage in load_run(str(run_dir)).stages} <= set(stages)
