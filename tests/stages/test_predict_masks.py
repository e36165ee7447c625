"""Masks from a segmenter: views, mean, CRF, labels; and `pmm predict` on a folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from latticecrf import DenseCrf
from pmm_ray.commands.predict import find_segmenter, predict_folder
from pmm_ray.config import RunConfig
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.segmenter import build_segmenter
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import index_file, read_all, read_index
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.rows.masks import crf_parameters
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages import predict_masks
from pmm_ray.stages.predict_masks import Scorer

MakeContext = Callable[..., RunContext]
SMALL = {
    "segmenter": {"channels": 8, "weights": "none", "output_stride": 32},
    "predict": {"ratios": [1.0], "resize_base": [64, 64], "crf": {"iterations": 1}}
    | {"use_image_labels": True, "actors": 1},
}


@pytest.fixture
def checkpoint(tmp_path: Path, shapes: Manifest) -> str:
    config = RunConfig.model_validate(SMALL).segmenter
    torch.manual_seed(0)
    model = build_segmenter(config, 4, 255)
    meta = {"config": config.model_dump(mode="json"), "num_classes": 4, "ignore_index": 255}
    meta |= {"label_space": shapes.label_space.to_json(), "round": 0, "training": {}}
    uri = str(tmp_path / "model.pt")
    save_model(uri, "segmenter", model, meta)
    return uri


def relabel(context: RunContext, checkpoint: str) -> tuple[StageFolder, Summary]:
    folder = StageFolder.below(context.run_dir, "predict_masks-r1", "12345678")
    summary = predict_masks.run(
        context.config.predict,
        context,
        folder,
        images=index_file(context.manifest.uri),
        checkpoint_uri=checkpoint,
        round_number=1,
    )
    return folder, summary


def check_masks(folder: StageFolder, manifest: Manifest, images: int) -> None:
    """Image labels restrict the classes."""
    table = read_all(folder.uri)
    assert table.schema.equals(tables.MASKS)
    assert table.num_rows == images
    rows = {r["image_id"]: r for r in tables.read_table(manifest.uri).to_pylist()}
    for row in table.to_pylist():
        image = rows[row["image_id"]]
        assert set(row["labels"]) <= set(image["labels"])
        assert row["round"] == 1
        assert decode_mask(row["mask_png"]).shape == (image["height"], image["width"])


def test_a_photograph_without_labels_may_hold_any_class(
    make_context: MakeContext, shapes: Manifest, checkpoint: str
) -> None:
    config = RunConfig.model_validate(SMALL).predict
    photographs = Photographs.of(make_context(shapes, RunConfig.model_validate(SMALL)))
    scorer = Scorer(checkpoint, config, photographs, use_gpu=False)
    row = tables.read_table(shapes.uri).to_pylist()[0]
    _, classes, scores = scorer(row)
    assert classes.tolist() == [0, *row["labels"]]
    _, classes, scores = scorer(row | {"labels": []})
    assert classes.tolist() == [*range(shapes.label_space.num_classes)]
    assert len(scores) == len(classes)


def test_masks_are_those_of_one_process_that_sends_nothing_and_a_lost_part_is_made_again(
    make_context: MakeContext, shapes: Manifest, checkpoint: str, tmp_path: Path
) -> None:
    """A missing file is an error row; nothing that was done is done twice."""
    data = tmp_path / "data"
    shutil.copytree(shapes.root, data)
    manifest = open_manifest(str(data / "manifest.parquet"))
    rows = tables.read_table(manifest.uri).to_pylist()
    (data / rows[0]["uri"]).unlink()
    config = RunConfig.model_validate(SMALL | {"predict": SMALL["predict"] | {"batch_size": 3}})
    context = make_context(manifest, config)
    folder, summary = relabel(context, checkpoint)
    check_masks(folder, manifest, 15)
    # on a CPU each view is seen with its mirror image, without a bound
    [end] = read_events(context.run_dir, "stage_end")
    assert end["views_per_pass"] == 2
    assert "filled" not in end
    # pixels are 3 bytes, each of at most 4 classes 2
    assert 64 * 64 * 3 < summary.details["sent_bytes_per_image"] < 100 * 100 * 12
    [error] = tables.read_errors(folder.errors_uri)
    assert (error.image_id, error.kind) == (rows[0]["image_id"], "missing")
    made = {row["image_id"]: row["mask_png"] for row in read_all(folder.uri).to_pylist()}
    scorer = Scorer(checkpoint, config.predict, Photographs.of(context), use_gpu=False)
    for row in rows[1:5]:
        image, classes, scores = scorer(row)
        crf = DenseCrf(image, crf_parameters(config.predict.crf))
        expected = classes[crf.joint(scores).argmax(0)]
        # float16 scores: a pixel between two classes may fall the other way
        assert (decode_mask(made[row["image_id"]]) != expected).mean() < 2e-3
    parts = read_index(folder.uri).parts
    before = {uri: Path(uri).stat().st_mtime_ns for uri in parts[1:]}
    Path(parts[0]).unlink()
    relabel(context, checkpoint)
    again = {row["image_id"]: row["mask_png"] for row in read_all(folder.uri).to_pylist()}
    assert again == made
    assert {uri: Path(uri).stat().st_mtime_ns for uri in before} == before


def test_without_a_crf_nothing_is_sent(
    make_context: MakeContext, shapes: Manifest, checkpoint: str
) -> None:
    predict = SMALL["predict"] | {"use_crf": False}
    context = make_context(shapes, RunConfig.model_validate(SMALL | {"predict": predict}))
    folder, summary = relabel(context, checkpoint)
    assert (summary.images, summary.errors) == (16, 0)
    assert "sent_bytes_per_image" not in summary.details
    check_masks(folder, shapes, 16)


def test_a_task_needs_neither_torch_nor_mmsegmentation() -> None:
    code = "import sys, pmm_ray.runtime.rows.scores; print({'torch', 'mmseg'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_predict_writes_a_png_for_each_photograph_and_a_row_for_what_it_cannot_read(
    ray_session: ClusterResources,
    shapes: Manifest,
    checkpoint: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    sources = sorted((Path(shapes.root) / "images").iterdir())[:3]
    for number, source in enumerate(sources):
        (photos / f"{number}{source.suffix}").write_bytes(source.read_bytes())
    (photos / "cut.jpg").write_bytes(sources[0].read_bytes()[:-400])
    out = tmp_path / "out"
    settings = ["predict.ratios=[1.0]", "predict.resize_base=[64, 64]", "predict.actors=1"]
    assert predict_folder(checkpoint, photos, out, settings=settings) == 0
    assert sorted(p.name for p in (out / "masks").glob("*.png")) == ["0.png", "1.png", "2.png"]
    [errors] = out.glob("predict_masks-*/errors")
    [row] = tables.read_errors(str(errors))
    assert (row.image_id, row.kind) == ("cut", "decode")
    written = {p.name: p.stat().st_mtime_ns for p in (out / "masks").iterdir()}
    # again: nothing is computed
    assert predict_folder(checkpoint, photos, out, settings=settings) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (out / "masks").iterdir()} == written


@pytest.mark.slow
def test_a_folder_has_the_masks_of_these_photographs_and_settings(
    ray_session: ClusterResources, shapes: Manifest, checkpoint: str, tmp_path: Path
) -> None:
    """Not of the frames of another film, of earlier settings, or none as the user deleted them."""
    sources = sorted((Path(shapes.root) / "images").iterdir())
    for film, source in zip(("film-1", "film-2"), sources, strict=False):
        (tmp_path / film).mkdir()
        with Image.open(source) as image:
            image.resize((64, 48)).save(tmp_path / film / "0001.png")
    out = tmp_path / "out"
    small = ["predict.ratios=[1.0]", "predict.resize_base=[64, 64]", "predict.actors=1"]

    def masks(film: str, *settings: str) -> dict[str, bytes]:
        assert predict_folder(checkpoint, tmp_path / film, out, settings=[*small, *settings]) == 0
        return {p.name: p.read_bytes() for p in (out / "masks").iterdir()}  # and `.stage`

    def tables_made() -> set[Path]:
        return set(out.glob("predict_masks-*/part-*"))

    first = masks("film-1")
    [made] = tables_made()
    masks("film-2")
    assert len(tables_made()) == 2
    plain = masks("film-1", "predict.use_crf=false")
    assert plain != first
    made_all = {part: part.stat().st_mtime_ns for part in tables_made()}
    assert made in made_all
    assert masks("film-1") == first
    shutil.rmtree(out / "masks")
    assert masks("film-1") == first
    (out / "masks/0001.png").unlink()
    assert masks("film-1") == first
    # and nothing of it was computed again
    assert {part: part.stat().st_mtime_ns for part in tables_made()} == made_all


def test_masks_that_a_user_drew_are_not_overwritten(
    tmp_path: Path, shapes: Manifest, checkpoint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos/masks").mkdir(parents=True)
    source = sorted((Path(shapes.root) / "images").iterdir())[0]
    shutil.copy(source, tmp_path / "photos" / f"a{source.suffix}")
    (tmp_path / "photos/masks/a.png").write_bytes(b"drawn by hand")
    assert predict_folder(checkpoint, tmp_path / "photos", tmp_path / "photos") == 1
    assert "masks holds files that this command did not make" in capfd.readouterr().err
    assert (tmp_path / "photos/masks/a.png").read_bytes() == b"drawn by hand"
    assert {path.name for path in (tmp_path / "photos").iterdir()} == {"masks", f"a{source.suffix}"}


def test_what_is_no_segmenter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="neither a run folder nor"):
        find_segmenter(str(tmp_path), ())
    (tmp_path / "run.json").write_text(
        '{"name": "x", "stages": [{"stage": "make_cams", "hash": "0", "folder": "x"}]}'
    )
    with pytest.raises(CannotRunError, match="no trained segmenter yet"):
        find_segmenter(str(tmp_path), ())
