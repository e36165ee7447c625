"""`pmm export --format mmseg`: mmengine's own Runner trains and validates what was written."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import TRANSFORMS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import ExifTags, Image

from pmm_ray.commands.export import export_run
from pmm_ray.nets.segmenter_modules import PretendedUnderfittingLoss
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.manifest import ExifRule, ManifestRow, write_manifest

from ..nets.segmenter_models import small, user_file
from .runs import SEGMENTER, make_run


def read_config(out: Path) -> Config:
    return Config.fromfile(out / "config.py")


def test_mmengine_trains_and_validates_what_was_exported(tmp_path: Path) -> None:
    manifest = make_run(tmp_path / "run", "make_masks")
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "mmseg") == 0
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    config = read_config(moved)
    config.work_dir = str(tmp_path / "work")
    config.default_hooks.logger.interval = 1
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.num_workers, loader.persistent_workers = 0, False
    config.env_cfg.dist_cfg.backend = "gloo"
    with DefaultScope.overwrite_default_scope("mmseg"):
        runner = Runner.from_cfg(config)
        losses = [
            module
            for module in runner.model.modules()
            if isinstance(module, PretendedUnderfittingLoss)
        ]
        assert len(losses) == 2
        runner.train()
    assert runner.iter == 2
    [log] = (tmp_path / "work").glob("*/vis_data/scalars.json")
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(math.isfinite(step["loss"]) for step in steps if "loss" in step)
    assert any("mIoU" in step for step in steps)
    assert list(runner.train_dataloader.dataset.metainfo["classes"]) == list(
        manifest.label_space.names
    )
    assert len(runner.train_dataloader.dataset) + len(runner.val_dataloader.dataset) == 8


def test_training_masks_are_the_runs_and_held_out_ones_the_truth(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = make_run(tmp_path / "run", "make_masks", "predict_masks-r1")
    out = tmp_path / "out"
    for _ in range(2):  # the same command again overwrites
        assert export_run(str(tmp_path / "run"), str(out), "mmseg") == 0
    for row in tables.read_table(manifest.uri).to_pylist():
        split, image_id = row["split"], row["image_id"]
        photograph = out / "images" / split / f"{image_id}.jpg"
        assert photograph.read_bytes() == Path(manifest.locate(row["uri"])).read_bytes()
        written = np.array(Image.open(out / "masks" / split / f"{image_id}.png"))
        truth = np.array(Image.open(manifest.locate(row["ground_truth_uri"])))
        if split == "train":
            assert written.sum() == 15 * 15
        else:
            np.testing.assert_array_equal(written, truth)
        assert f"{image_id}\n" in (out / "splits" / f"{split}.txt").read_text()
    said = " ".join(capfd.readouterr().err.split())
    assert "train from predict_masks-r1, val from ground truth, pixel labels used" in said
    # cyclic masks: plain cross entropy, as in the paper
    model = read_config(out).model
    assert model.decode_head.loss_decode.kind == "none"
    assert model.test_cfg == {"mode": "slide", "crop_size": (64, 64), "stride": (48, 48)}
    assert len(index_file(manifest.uri)) == 8


def test_an_update_of_several_passes_is_as_many_iterations_of_mmengines(tmp_path: Path) -> None:
    """Six images an update in passes of two, as the run trained."""
    section = SEGMENTER | {"batch_size": 6, "accumulate": 3, "iterations": 50, "validate_every": 20}
    make_run(tmp_path / "run", "make_masks", segmenter=section)
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "mmseg") == 0
    config = read_config(tmp_path / "out")
    assert config.train_dataloader.batch_size == 2
    assert config.optim_wrapper.accumulative_counts == 3
    assert config.train_cfg.max_iters == config.param_scheduler[0].end == 150
    assert config.train_cfg.val_interval == config.default_hooks.checkpoint.interval == 60
    assert "an update takes 3 iterations" in (tmp_path / "out" / "config.py").read_text()


def test_class_weights_of_the_data_sets_ids_become_those_of_its_classes(tmp_path: Path) -> None:
    model = small("loss_decode=dict(type='CrossEntropyLoss', class_weight=[1., 2., 3., 4., 5.])")
    source = user_file(tmp_path, model)
    section = SEGMENTER | {"config": source.uri, "layout": "dataset", "weights": "none"}
    manifest = make_run(tmp_path / "run", "make_masks", segmenter=section)
    space = dataclasses.replace(manifest.label_space, dataset_ids=(0, 1, 3, 4))
    rows = [
        ManifestRow(*(row[f.name] for f in dataclasses.fields(ManifestRow)))
        for row in tables.read_table(manifest.uri).to_pylist()
    ]
    write_manifest(manifest.uri, rows, space, source="test", exif="ignore")
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "mmseg") == 0
    loss = read_config(tmp_path / "out").model.decode_head.loss_decode
    assert loss.class_weight == [1.0, 2.0, 4.0, 5.0]


def test_images_that_cannot_be_exported_are_left_out_and_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = make_run(tmp_path / "run", "make_masks")
    rows = tables.read_table(manifest.uri).to_pylist()
    train, held_out = ([r for r in rows if r["split"] == split] for split in ("train", "val"))
    Path(manifest.locate(train[0]["uri"])).unlink()
    truth = Path(manifest.locate(held_out[0]["ground_truth_uri"]))
    Image.fromarray(np.full((48, 48), 200, np.uint8)).save(truth)
    out = tmp_path / "out"
    assert export_run(str(tmp_path / "run"), str(out), "mmseg") == 0
    said = " ".join(capfd.readouterr().err.split())
    assert f"1 missing ({train[0]['image_id']}: the file does not exist)" in said
    assert f"1 label ({held_out[0]['image_id']}: mask values [200] are outside 0..3" in said
    assert f"{len(rows) - 2} of {len(rows)} images" in said
    failed = {row.image_id for row in tables.read_errors(str(out / "errors"))}
    assert failed == {train[0]["image_id"], held_out[0]["image_id"]}
    for split, left_out, all_rows in (("train", train[0], train), ("val", held_out[0], held_out)):
        ids = sorted(row["image_id"] for row in all_rows if row is not left_out)
        assert (out / "splits" / f"{split}.txt").read_text().split() == ids
        for kind in ("images", "masks"):
            assert sorted(p.stem for p in (out / kind / split).iterdir()) == ids


def test_photographs_of_several_kinds_keep_their_suffix(tmp_path: Path) -> None:
    manifest = make_run(tmp_path / "run", "make_masks")
    table = tables.read_table(manifest.uri)
    rows = table.to_pylist()
    old = Path(manifest.locate(rows[0]["uri"]))
    Image.open(old).save(old.with_suffix(".png"))
    rows[0]["uri"] = str(Path(rows[0]["uri"]).with_suffix(".png"))
    Path(manifest.uri).write_bytes(tables.to_bytes(type(table).from_pylist(rows, table.schema)))
    out = tmp_path / "out"
    assert export_run(str(tmp_path / "run"), str(out), "mmseg") == 0
    names = [p.name for p in (out / "images").rglob("*.png")]
    assert names == [f"{rows[0]['image_id']}.png"]
    assert (out / "masks" / rows[0]["split"] / f"{names[0]}.png").exists()
    config = read_config(out)
    assert config.train_dataloader.dataset.img_suffix == ""


@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize(
    ("kind", "ending"), [("AVIF", ".avif"), ("AVIF", ".jpg"), ("JPEG", ".jpg")]
)
def test_opencv_shows_photographs_as_their_masks_are(
    tmp_path: Path, kind: str, ending: str, exif: ExifRule
) -> None:
    manifest = make_run(tmp_path / "run", "make_masks")
    rows = tables.read_table(manifest.uri).to_pylist()
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    for row in rows:
        photograph = Path(manifest.locate(row["uri"])).with_suffix(ending)
        Image.new("RGB", (64, 48), "red").save(photograph, kind, exif=tags)
        row["uri"] = str(photograph)
    space = manifest.label_space
    new = [ManifestRow(**row) for row in rows]
    write_manifest(manifest.uri, new, space, source="test", exif=exif)
    out = tmp_path / "out"
    assert export_run(str(tmp_path / "run"), str(out), "mmseg") == 0
    dataset = read_config(out).train_dataloader.dataset
    load = TRANSFORMS.build(dataset.pipeline[0])
    shown = (64, 48) if exif == "apply" else (48, 64)
    name = rows[0]["image_id"] + dataset.img_suffix
    [path] = (out / "images").rglob(name)
    assert load({"img_path": str(path)})["img"].shape[:2] == shown


def test_without_masks_to_learn_from_it_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", "make_masks", data={"train_split": "train_aug"})
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "mmseg") == 1
    assert "no masks of its training split 'train_aug'" in " ".join(capfd.readouterr().err.split())


def test_a_configuration_of_another_version_is_explained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", "make_masks")
    config = tmp_path / "run" / "resolved.yaml"
    config.write_text(config.read_text() + "gone: {key: 1}\n")
    run = str(tmp_path / "run")
    assert export_run(run, str(tmp_path / "out"), "mmseg") == 1
    assert "does not fit this version" in " ".join(capfd.readouterr().err.split())
    # formats that need no configuration are written all the same
    assert export_run(run, str(tmp_path / "voc"), "voc") == 0
