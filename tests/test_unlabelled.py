"""Photographs without labels: no map is made of them, the sum counts them, the others are whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from pmm_ray.commands.run import run_recipe
from pmm_ray.config import RunConfig
from pmm_ray.pipeline.run import Run
from pmm_ray.pipeline.steps import ladder_steps
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import read_index, scan_parts, write_index
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.selection import Selection
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import StageFolder, Summary
from pmm_ray.runtime.rows.dataset import DataSet

RECIPE = """
name: partly
data: {source: folder, train_split: train, held_out_split: val}
classifier: {backbone: efficientnet_lite0, weights: none, epochs: 1, batch_size: 4,
             resize_long: [48, 64], crop_size: 32}
cams: {scales: [1.0], flip: false}
errors: {budget: 0}
"""
MULTICROP = """
base: {cams: {scales: [1.0], flip: false}}
multicrop: {enabled: true, backbone: efficientnet_lite0, weights: none, epochs: 1, batch_size: 4,
            validation_images: 0, crops: {size: 32, stride: 32, scales: [1.0]}}
"""


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(RECIPE, id="one classifier"),
        pytest.param(RECIPE + MULTICROP, id="two", marks=pytest.mark.slow),
    ],
)
def test_unlabelled_photographs_are_left_out_and_counted(
    shapes: Manifest, tmp_path: Path, capfd: pytest.CaptureFixture[str], recipe: str
) -> None:
    """With no error allowed: a photograph that nobody labelled is no error."""
    (tmp_path / "photos/images").mkdir(parents=True)
    rows = tables.read_table(shapes.uri).to_pylist()
    lines, unlabelled = ["image_id,labels,split"], set()
    for number, row in enumerate(rows):
        image_id, names = row["image_id"], [shapes.label_space.names[k] for k in row["labels"]]
        target = tmp_path / "photos/images" / Path(row["uri"]).name
        shutil.copy(shapes.locate(row["uri"]), target)
        if number % 5 == 0:  # some have no line, some an empty cell
            unlabelled.add(image_id)
            names = []
        if number % 10:
            lines.append(f"{image_id},{';'.join(names)},{row['split']}")
    (tmp_path / "photos/labels.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "photos/classes.txt").write_text("\n".join(shapes.label_space.names[1:]) + "\n")
    (tmp_path / "r.yaml").write_text(recipe)
    settings = [f"data.root={tmp_path}/photos"]
    run_dir = tmp_path / "run"
    code = run_recipe(
        str(tmp_path / "r.yaml"), run_dir=str(run_dir), settings=settings, last="make_masks"
    )
    captured = capfd.readouterr()
    said = captured.out + captured.err
    assert code == 0, said
    (masks,) = run_dir.glob("make_masks-*")
    labelled = {row["image_id"] for row in rows} - unlabelled
    assert set(read_index(str(masks)).image_ids) == labelled
    found = len(rows) + 2  # classes.txt and labels.csv
    assert f"{len(labelled)} of {found} images" in said
    assert f"{len(unlabelled)} left out: without an image-level label" in said


def test_nothing_labelled_is_refused_with_the_splits(shapes: Manifest, tmp_path: Path) -> None:
    rows = tables.read_table(shapes.uri)
    column = rows.schema.get_field_index("labels")
    empty = pa.array([[]] * rows.num_rows, rows.schema.field(column).type)
    none = rows.set_column(column, rows.schema.field(column), empty)
    uri = tmp_path / "manifest.parquet"
    uri.write_bytes(tables.to_bytes(none))
    with pytest.raises(CannotRunError, match=r"no image of train or val has an image-level label"):
        DataSet.open(str(uri)).labelled("train", "val")


def test_truth_of_photographs_without_labels_scores_no_way_to_masks(
    shapes: Manifest, tmp_path: Path
) -> None:
    rows = tables.read_table(shapes.uri).to_pylist()
    labelled = [{"image_id": row["image_id"]} for row in rows if row["split"] == "train"]
    for row in rows:
        row["labels"] = row["labels"] if row["split"] == "train" else []
    uri, schema = str(tmp_path / "manifest.parquet"), tables.read_table(shapes.uri).schema
    Path(uri).write_bytes(tables.to_bytes(pa.Table.from_pylist(rows, schema)))
    config = RunConfig()
    session = Session(str(tmp_path / "run"), config, Selection(("make_cams",)), Progress())
    run = Run(session, [])
    run.data = DataSet.open(uri)
    assert run.data.with_truth("val")
    cams = StageFolder.below(session.run_dir, "make_cams", "0")
    ids = pa.schema([("image_id", pa.string())])
    tables.write_rows(cams.path("part-0.parquet"), labelled, ids)
    write_index(cams.uri, scan_parts(cams.uri)[0])
    cams.finish(Summary(stage=cams.stage, hash=cams.hash))
    run.folders[cams.stage] = cams
    # the run goes on without these scores
    assert [step.make(run) for step in ladder_steps(config, "cam_argmax")] == [None] * 3
