"""Base masks, and the classifier that is trained on the windows they relabel."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pmm_ray.config import BaseConfig, MulticropConfig, RunConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.masks import base_mask
from pmm_ray.nets.registry import load_classifier
from pmm_ray.nets.segmenter_config import normalisation
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import ErrorRow, RowError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import read_all, scan_parts
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.rows.cams import decode_cam
from pmm_ray.runtime.rows.images import decode_mask, encode_mask, read_image
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.loader import TrainingRow
from pmm_ray.runtime.training.mask_file import build_mask_file
from pmm_ray.stages import make_base_masks, train_multicrop
from pmm_ray.stages.make_base_masks import base_worker
from pmm_ray.stages.train_multicrop import WindowSample

SPACE = LabelSpace.from_names(["a", "b", "c"])
CROPS = {"scales": [0.75, 1.5, 3.0], "size": 48, "stride": 32}


def blob_cams(manifest: Manifest) -> list[dict[str, Any]]:
    """Cams rows of the training split: each class a blob of its own."""
    rows = []
    for number, row in enumerate(tables.read_table(manifest.uri).to_pylist()):
        if row["split"] != "train":
            continue
        draw = np.random.default_rng(number)
        height, width = -(-row["height"] // 4), -(-row["width"] // 4)
        y, x = np.mgrid[:height, :width]
        maps = [
            np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (0.05 * height * width))
            for cy, cx in draw.uniform((0, 0), (height, width), (len(row["labels"]), 2))
        ]
        cam = np.array(maps).astype("<f2").tobytes()
        kept = {name: row[name] for name in ("image_id", "height", "width", "labels")}
        rows.append(kept | {"cam": cam, "cam_height": height, "cam_width": width})
    return rows


def test_a_base_mask_is_the_method_s(shapes: Manifest) -> None:
    cams = blob_cams(shapes)[0]
    every = {row["image_id"]: row for row in tables.read_table(shapes.uri).to_pylist()}
    manifest = every[cams["image_id"]]
    photographs = Photographs(shapes.root, shapes.apply_exif, 10**8, shapes.label_space)
    config = BaseConfig(alpha=3, threshold=0.6)
    worker = base_worker(config, photographs)
    [row] = worker([{"manifest": manifest, "cams": cams}])
    assert isinstance(row, dict)
    image = read_image(shapes.locate(manifest["uri"]), apply_exif=False)
    cam = upsample_cam(decode_cam(cams), *image.shape[:2])
    found = decode_mask(row["mask_png"])
    np.testing.assert_array_equal(found, base_mask(image, cam, cams["labels"], 3, 0.6))
    assert set(np.unique(found)) - {0} == set(row["labels"]) <= set(manifest["labels"])
    broken = cams | {"cam": b"\xff" * len(cams["cam"])}
    [error] = worker([{"manifest": manifest, "cams": broken}])
    assert isinstance(error, ErrorRow)
    assert error.kind == "nonfinite"


def sample_of(base_HW: NDArray[np.uint8], folder: Path, **values: Any) -> WindowSample:
    row = {"image_id": "i", "height": 1, "width": 1, "labels": [], "foreground": 0.0, "round": 0}
    row["mask_png"] = encode_mask(base_HW, SPACE)
    tables.write_rows(str(folder / "masks" / "part-0.parquet"), [row], tables.MASKS)
    masks = build_mask_file(str(folder / "masks"), SPACE, folder)
    config = MulticropConfig.model_validate({"crops": {**CROPS, **values}, "color_jitter": 0})
    return WindowSample(config, 3, normalisation(config.backbone, None), masks)


@pytest.mark.parametrize("geometry", ["paper", "released"])
def test_a_sample_shows_what_its_labels_say(geometry: str, tmp_path: Path) -> None:
    base = np.zeros((60, 90), np.uint8)
    base[5:25, 5:35], base[30:55, 60:85] = 1, 3
    image = np.zeros((60, 90, 3), np.uint8)
    image[..., 0], image[..., 1] = (base == 1) * 255, (base == 3) * 255
    sample = sample_of(base, tmp_path, geometry=geometry)
    row = TrainingRow("i", "i.png", (1, 2, 3))
    seen = set()
    for seed in range(60):
        view, target = sample(row, image, seed)
        assert view.shape == (3, 48, 48)
        again, _ = sample(row, image, seed)
        assert torch.equal(view, again)
        labels = {int(i) + 1 for i in target.nonzero()}
        # what the mask does not show is no label, though the image has it
        assert labels <= {1, 3}
        shares = [(view[channel] > 1).float().mean().item() for channel in (0, 1)]
        for label, share in zip((1, 3), shares, strict=True):
            # more than a tenth of the window is of the class
            assert share < 0.15 or label in labels
        seen.add(tuple(sorted(labels)))
    assert {(1,), (3,)} <= seen


def test_an_image_without_a_confident_class_is_trained_with_no_label(tmp_path: Path) -> None:
    sample = sample_of(np.zeros((60, 90), np.uint8), tmp_path)
    _, target = sample(TrainingRow("i", "", (1,)), np.zeros((60, 90, 3), np.uint8), 0)
    assert not target.any()


def test_a_base_mask_of_another_size_is_an_error_row(tmp_path: Path) -> None:
    sample = sample_of(np.zeros((60, 90), np.uint8), tmp_path)
    with pytest.raises(RowError, match=r"mask is \(60, 90\), the image \(90, 60\)"):
        sample(TrainingRow("i", "", (1,)), np.zeros((90, 60, 3), np.uint8), 0)


def test_a_loader_process_opens_the_masks_itself(tmp_path: Path) -> None:
    sample = sample_of(np.ones((60, 90), np.uint8), tmp_path)
    row, image = TrainingRow("i", "", (1,)), np.zeros((60, 90, 3), np.uint8)
    expected = sample(row, image, 5)
    copy = pickle.loads(pickle.dumps(sample))
    assert all(torch.equal(a, b) for a, b in zip(copy(row, image, 5), expected, strict=True))


def test_base_masks_train_the_second_classifier(
    shapes: Manifest, make_context: Any, loop_here: None, tmp_path: Path
) -> None:
    training = {"enabled": True, "kind": "seam", "batch_size": 4, "epochs": 2, "workers": 1}
    training |= {"output_stride": 32, "validation_images": 4}
    config = RunConfig.model_validate(
        {
            "base": {"alpha": 3, "threshold": 0.5, "crf": {"iterations": 2}},
            "multicrop": {**training, "crops": CROPS, "validation_long": 56},
        }
    )
    context = make_context(shapes, config)
    cams = str(tmp_path / "cams")
    rows = blob_cams(shapes)
    tables.write_rows(f"{cams}/part-0.parquet", rows, tables.CAMS)
    masks = StageFolder.below(context.run_dir, "make_base_masks", "0")
    made = make_base_masks.run(config.base, context, masks, cams=scan_parts(cams)[0])
    assert (made.images, made.errors) == (len(rows), 0)
    assert read_all(masks.uri).schema.equals(tables.MASKS)
    folder = StageFolder.below(context.run_dir, "train_multicrop", "0")
    summary = train_multicrop.run(config.multicrop, context, folder, masks_uri=masks.uri)
    assert (summary.images, summary.errors) == (len(rows), 0)
    assert np.isfinite(summary.metrics["loss"])
    net, meta = load_classifier(folder.path("model.pt"))
    assert net.num_foreground == 3
    assert meta["config"]["kind"] == "seam"
    # the second classifier is validated after each epoch as the first one is
    events = list(read_events(context.run_dir, "validation"))
    assert [event["epoch"] for event in events] == [1, 2]
    assert 0 <= events[-1]["mean_average_precision"] <= 1
    assert 0 <= events[-1]["cam_miou"] <= 1
    assert summary.metrics["cam_miou"] == events[-1]["cam_miou"]
