"""`pmm export`: what other programs read is what the run's masks table holds."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image, ImageOps
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage
from typer.testing import CliRunner

from pmm_ray.cli import app
from pmm_ray.commands.export import export_run
from pmm_ray.commands.export.coco import file_names
from pmm_ray.labels import COCO14, LabelSpace, voc_palette
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import scan_parts, write_index
from pmm_ray.runtime.core.manifest import (
    ExifRule,
    ManifestRow,
    open_manifest,
    write_manifest,
)
from pmm_ray.runtime.core.stage import StageFolder, Summary
from pmm_ray.runtime.rows.images import decode_mask, encode_mask
from pmm_ray.runtime.rows.masks import mask_row
from pmm_ray.sources.datasets.parquet import import_parquet

Masks = dict[str, np.ndarray[Any, Any]]
COCO_IDS = ("COCO_val2014_000000000042", "COCO_val2014_000000000139")


def make_run(root: Path, ids: tuple[str, ...], space: LabelSpace) -> Masks:
    """A finished run: one training image, the others held out; returns their masks."""
    random = np.random.default_rng(0)
    masks: Masks = {}
    rows, records = [], []
    for number, image_id in enumerate(ids):
        height, width = 20 + number, 31
        mask = np.zeros((height, width), space.mask_dtype)
        mask[3:12, 5:20] = random.integers(0, space.num_classes, (9, 15))
        mask[15:, :4] = space.ignore
        masks[image_id] = mask
        split = "train" if number == 0 else "val"
        uri = f"/photographs/{image_id}.jpg"
        rows.append(ManifestRow(image_id, uri, (1,), height, width, split))
        records.append(
            {
                "image_id": image_id,
                "height": height,
                "width": width,
                "mask_png": encode_mask(mask, space),
                "foreground": 0.5,
                "labels": [1],
                "round": 0,
            }
        )
    write_manifest(str(root / "manifest.parquet"), rows, space, source="test", exif="ignore")
    stages = []
    for name, part in (("make_masks", records), ("make_masks-cam_argmax", records[1:])):
        folder = StageFolder.below(str(root), name, "00000000")
        tables.write_rows(folder.path("part-0.parquet"), part[::2], tables.MASKS)
        tables.write_rows(folder.path("part-1.parquet"), part[1::2], tables.MASKS)
        write_index(folder.uri, scan_parts(folder.uri)[0])
        folder.finish(Summary(stage=name, hash=folder.hash, images=len(part)))
        stages.append({"stage": name, "hash": folder.hash, "folder": f"{name}-{folder.hash}"})
    record = {"name": "test", "finished": "now", "manifest": "manifest.parquet", "stages": stages}
    (root / "run.json").write_text(json.dumps(record))
    return masks


def test_a_voc_tree_holds_every_mask_and_lists_every_split(tmp_path: Path) -> None:
    space = LabelSpace.from_names(["cat", "dog"], name="pets")
    masks = make_run(tmp_path / "run", ("a", "b", "c"), space)
    out = tmp_path / "out"
    for _ in range(2):  # the same command again overwrites
        assert export_run(str(tmp_path / "run"), str(out), "voc") == 0
    for image_id, mask in masks.items():
        with Image.open(out / "SegmentationClass" / f"{image_id}.png") as image:
            assert image.mode == "P"
            palette = np.array(image.getpalette()).reshape(-1, 3)
            assert np.array_equal(palette, voc_palette())
            assert np.array_equal(np.array(image), mask)
    lists = out / "ImageSets" / "Segmentation"
    assert (lists / "train.txt").read_text() == "a\n"
    assert (lists / "val.txt").read_text() == "b\nc\n"
    assert (out / "class_names.txt").read_text() == "background\ncat\ndog\n"
    assert len(list((out / "SegmentationClass").iterdir())) == 3


def test_files_of_one_name_in_two_folders_have_two_names() -> None:
    assert file_names(["/d/images/a.jpg", "/d/images/x/b.jpg"]) == ["a.jpg", "b.jpg"]
    assert file_names(["/d/images/x/1.jpg", "/d/images/y/1.jpg"]) == ["x/1.jpg", "y/1.jpg"]
    assert file_names(["1.jpg", "y/1.jpg"]) == ["1.jpg", "y/1.jpg"]
    assert file_names(["s3://b/x/1.jpg", "s3://b/y/1.jpg"]) == ["x/1.jpg", "y/1.jpg"]


def test_coco_json_gives_the_masks_back(tmp_path: Path) -> None:
    masks = make_run(tmp_path / "run", COCO_IDS, COCO14)
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "coco") == 0
    coco = COCO(tmp_path / "out" / "instances_val.json")
    image_id = COCO_IDS[1]
    assert coco.getImgIds() == [139]
    assert coco.loadImgs(139)[0]["file_name"] == f"{image_id}.jpg"
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == dict(
        zip(COCO14.dataset_ids[1:], COCO14.names[1:], strict=True)
    )
    mask = masks[image_id]
    again = np.zeros_like(mask)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[139]))
    assert len({a["id"] for a in annotations}) == len(annotations) > 10
    for annotation in annotations:
        region = coco.annToMask(annotation).astype(bool)
        label = COCO14.dataset_ids.index(annotation["category_id"])
        again[region] = label
        assert annotation["area"] == (mask == label).sum()
        rows, columns = np.nonzero(mask == label)
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
    mask[mask == COCO14.ignore] = 0
    assert np.array_equal(again, mask)


def test_images_whose_ids_end_in_the_same_number_are_counted(tmp_path: Path) -> None:
    space = LabelSpace.from_names(["cat", "dog"], name="pets")
    make_run(tmp_path / "run", ("t", "2007_000032", "2008_000032"), space)
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "coco") == 0
    written = json.loads((tmp_path / "out" / "instances_val.json").read_text())
    assert [(i["id"], i["file_name"]) for i in written["images"]] == [
        (1, "2007_000032.jpg"),
        (2, "2008_000032.jpg"),
    ]
    assert {a["image_id"] for a in written["annotations"]} == {1, 2}


def test_numbers_of_more_than_64_bits_are_no_ids_of_coco(tmp_path: Path) -> None:
    space = LabelSpace.from_names(["cat", "dog"], name="pets")
    make_run(tmp_path / "run", ("t", "5", str(2**63)), space)
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "coco") == 0
    written = json.loads((tmp_path / "out" / "instances_val.json").read_text())
    assert [i["id"] for i in written["images"]] == [1, 2]


@pytest.mark.parametrize("name", ["#dog", "dog\ncat", '"dog"'])
def test_names_that_a_list_cannot_hold_are_no_voc_tree(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    space = LabelSpace("pets", ("background", "cow", name), (0, 1, 2))
    make_run(tmp_path / "run", ("a", "b"), space)
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "voc") == 1
    assert "export --format coco" in capfd.readouterr().err
    assert not (tmp_path / "out" / "SegmentationClass").exists()


def test_splits_that_yolo_does_not_know_are_said(
    tmp_path: Path, regions: Masks, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = str(tmp_path / "run/manifest.parquet")
    manifest = open_manifest(uri)
    rows = [
        ManifestRow(**row | {"split": row["split"].replace("val", "extra")})
        for row in tables.read_table(uri).to_pylist()
    ]
    write_manifest(uri, rows, manifest.label_space, source="test", exif="ignore")
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "yolo") == 0
    assert "data.yaml leaves out extra" in capfd.readouterr().err


def test_other_masks_are_exported_by_name(tmp_path: Path) -> None:
    space = LabelSpace.from_names(["cat", "dog"], name="pets")
    make_run(tmp_path / "run", ("a", "b"), space)
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    assert export_run(run, out, "voc", "make_masks-cam_argmax") == 0
    assert [p.name for p in (tmp_path / "out" / "SegmentationClass").iterdir()] == ["b.png"]


@pytest.mark.parametrize(
    ("change", "stage", "message"),
    [
        ({"finished": None}, None, "is not finished"),
        ({}, "make_mask", "has no finished masks called 'make_mask'"),
        ({"stages": []}, None, "has made no masks"),
    ],
)
def test_what_cannot_be_exported_is_explained(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, Any],
    stage: str | None,
    message: str,
) -> None:
    make_run(tmp_path / "run", ("a", "b"), LabelSpace.from_names(["cat"], name="pets"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | change))
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "voc", stage) == 1
    assert not (tmp_path / "out").exists()
    assert message in " ".join(capfd.readouterr().err.split())


def test_an_unknown_format_is_a_wrong_use(tmp_path: Path) -> None:
    command = ["export", str(tmp_path), str(tmp_path / "out"), "--format", "png"]
    assert CliRunner().invoke(app, command).exit_code == 2


@pytest.fixture
def regions(tmp_path: Path) -> Masks:
    """A run of two images in `run`, their photographs beside it, masks of regions without holes."""
    space = LabelSpace.from_names(["cat", "dog"], name="pets")
    masks = make_run(tmp_path / "run", ("a", "b"), space)
    random = np.random.default_rng(0)
    rows = []
    for image_id, mask in masks.items():
        region = ndimage.gaussian_filter(random.random(mask.shape), 2) > 0.5
        mask[:] = ndimage.binary_fill_holes(region)
        mask[:, 15:] *= 2
        mask[0, :2] = space.ignore
        photograph = tmp_path / "photographs" / f"{image_id}.JPG"
        photograph.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(photograph)
        split = "train" if image_id == "a" else "val"
        rows.append(ManifestRow(image_id, str(photograph), (2,), *mask.shape, split))
        about = {"image_id": image_id, "height": mask.shape[0], "width": mask.shape[1]}
        part = tmp_path / "run/make_masks-00000000" / f"part-{'01'[image_id == 'b']}.parquet"
        tables.write_rows(str(part), [mask_row(about, mask, space, 0)], tables.MASKS)
    uri = str(tmp_path / "run/manifest.parquet")
    write_manifest(uri, rows, space, source="test", exif="ignore")
    return masks


def test_outlines_of_yolo_give_the_regions_back(tmp_path: Path, regions: Masks) -> None:
    out = tmp_path / "out"
    assert export_run(str(tmp_path / "run"), str(out), "yolo") == 0
    assert yaml.safe_load((out / "data.yaml").read_text()) == {
        "train": "images/train",
        "val": "images/val",
        "names": {0: "cat", 1: "dog"},
    }
    for split, (image_id, mask) in zip(("train", "val"), regions.items(), strict=True):
        photograph = (tmp_path / f"photographs/{image_id}.JPG").read_bytes()
        assert (out / f"images/{split}/{image_id}.JPG").read_bytes() == photograph
        again = np.zeros_like(mask)
        lines = (out / f"labels/{split}/{image_id}.txt").read_text().splitlines()
        for line in lines:
            label, *numbers = line.split()
            points = np.array(numbers, float).reshape(-1, 2) * mask.shape[::-1]
            # COCO's rasteriser; the outlines are OpenCV's
            runs = coco_mask.frPyObjects([points.ravel().tolist()], *mask.shape)
            again[coco_mask.decode(coco_mask.merge(runs)).astype(bool)] = int(label) + 1
        assert len({line.split()[0] for line in lines}) == 2
        assert np.array_equal(again, np.where(mask == 255, 0, mask))


def test_parquet_of_hugging_face_comes_back_as_a_data_set(tmp_path: Path, regions: Masks) -> None:
    out = tmp_path / "out"
    assert export_run(str(tmp_path / "run"), str(out), "hf") == 0
    for split, (image_id, mask) in zip(("train", "val"), regions.items(), strict=True):
        [row] = tables.read_table(str(out / f"data/{split}-00000-of-00001.parquet")).to_pylist()
        assert (row["image_id"], row["labels"]) == (image_id, [2])
        photograph = (tmp_path / f"photographs/{image_id}.JPG").read_bytes()
        assert row["image"] == {"bytes": photograph, "path": f"{image_id}.JPG"}
        assert np.array_equal(decode_mask(row["mask"]["bytes"]), mask)
    report = import_parquet(str(out), str(tmp_path / "again"))
    assert report.manifest.splits == {"train": 1, "val": 1}
    assert report.classes == {"cat": {}, "dog": {"train": 1, "val": 1}}


@pytest.mark.parametrize("name", ["yolo", "hf"])
@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_what_obeys_exif_shows_photographs_as_their_masks_are(
    name: str, exif: ExifRule, tmp_path: Path, regions: Masks
) -> None:
    turned, _ = regions
    path = tmp_path / f"photographs/{turned}.JPG"
    stored = Image.open(path)
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    stored.save(path, exif=tags)
    manifest = str(tmp_path / "run/manifest.parquet")
    rows = [ManifestRow(**row) for row in tables.read_table(manifest).to_pylist()]
    space = open_manifest(manifest).label_space
    write_manifest(manifest, rows, space, source="test", exif=exif)
    out = tmp_path / "out"
    assert export_run(str(tmp_path / "run"), str(out), name) == 0
    if name == "yolo":
        [file] = (out / "images/train").iterdir()
        ending, data = file.suffix, file.read_bytes()
    else:
        [row] = tables.read_table(str(out / "data/train-00000-of-00001.parquet")).to_pylist()
        ending, data = Path(row["image"]["path"]).suffix, row["image"]["bytes"]
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size
    assert (ending, shown) == (
        (".png", stored.size) if exif == "ignore" else (".JPG", stored.size[::-1])
    )


def test_photographs_that_yolo_would_pass_over_become_png(tmp_path: Path, regions: Masks) -> None:
    name, _ = regions
    path = tmp_path / f"photographs/{name}.JPG"
    Image.open(path).save(path, "GIF")
    path.rename(path.with_suffix(".gif"))
    manifest = str(tmp_path / "run/manifest.parquet")
    rows = [ManifestRow(**row) for row in tables.read_table(manifest).to_pylist()]
    rows = [replace(row, uri=row.uri.replace(f"{name}.JPG", f"{name}.gif")) for row in rows]
    space = open_manifest(manifest).label_space
    write_manifest(manifest, rows, space, source="test", exif="ignore")
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "yolo") == 0
    with Image.open(tmp_path / f"out/images/train/{name}.png") as image:
        assert image.format == "PNG"


def test_datasets_loads_images_masks_and_labels(tmp_path: Path, regions: Masks) -> None:
    datasets = pytest.importorskip("datasets", reason="no `datasets` to load the files with")
    out = tmp_path / "out"
    assert export_run(str(tmp_path / "run"), str(out), "hf") == 0
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "val"}
    for split, (image_id, mask) in zip(("train", "val"), regions.items(), strict=True):
        [row] = loaded[split]
        names = loaded[split].features["labels"].feature.int2str(row["labels"])
        assert (row["image_id"], names) == (image_id, ["dog"])
        assert row["image"].size == row["mask"].size == mask.shape[::-1]
        assert np.array_equal(np.array(row["mask"]), mask)


@pytest.mark.parametrize("name", ["yolo", "hf"])
def test_a_photograph_that_is_gone_is_an_error_row(
    name: str, tmp_path: Path, regions: Masks, capfd: pytest.CaptureFixture[str]
) -> None:
    gone, _ = regions
    (tmp_path / f"photographs/{gone}.JPG").unlink()
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), name) == 0
    said = capfd.readouterr().err
    assert f"1 of 2 images\nnot: 1 missing ({gone}: the file does not exist)\n-> " in said
