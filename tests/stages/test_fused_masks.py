"""CAMs that go straight into the mask tasks: the same masks, the same errors, the same resume."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.index import index_file, read_all, read_index
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.cams import Cams
from pmm_ray.stages import make_cams, make_masks

from ..training import untrained_classifier

MakeContext = Callable[..., RunContext]

CONFIG = RunConfig.model_validate(
    {
        "cams": {"scales": [1.0], "flip": False, "batch_size": 3, "actors": 1},
        "masks": {"alpha": 2, "crf": {"iterations": 2}},
    }
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return untrained_classifier(tmp_path_factory.mktemp("model"))


def spoiled(shapes: Manifest, folder: Path) -> Manifest:
    """A copy in which one image has no file and another no label."""
    shutil.copytree(shapes.root, folder)
    uri = str(folder / "manifest.parquet")
    table = tables.read_table(uri)
    rows = table.to_pylist()
    (folder / rows[0]["uri"]).unlink()
    rows[1]["labels"] = []
    storage.write_bytes(uri, tables.to_bytes(pa.Table.from_pylist(rows, table.schema)))
    return open_manifest(uri)


def one_after_the_other(context: RunContext, checkpoint: str) -> tuple[pa.Table, list[ErrorRow]]:
    """What both stages' workers make in this process, the CAMs stored in between."""
    rows = [{"manifest": row} for row in tables.read_table(context.manifest.uri).to_pylist()]
    made = list(make_cams.cam_factory(CONFIG.cams, context, checkpoint)()(rows))
    cams = {row["image_id"]: row for row in made if isinstance(row, dict)}
    uri = storage.join(context.run_dir, "cams.parquet")
    tables.write_rows(uri, cams.values(), tables.CAMS)
    stored = {row["image_id"]: row for row in tables.read_table(uri).to_pylist()}
    both = [row | {"cams": stored[i]} for row in rows if (i := row["manifest"]["image_id"]) in cams]
    masks = list(make_masks.mask_factory(CONFIG.masks, context, "make_masks", "ppmg")()(both))
    errors = [row for row in made if isinstance(row, ErrorRow)]
    return pa.Table.from_pylist(masks, tables.MASKS), errors


def fused(context: RunContext, checkpoint: str) -> StageFolder:
    folder = StageFolder.below(context.run_dir, "make_masks", "00000000")
    images = index_file(context.manifest.uri)
    streamed = Cams(images, "00000000", streamed_from=checkpoint)
    make_masks.run(CONFIG.masks, context, folder, cams=streamed)
    return folder


def unplaced(error: ErrorRow) -> ErrorRow:
    """An error row, whatever process met it."""
    return dataclasses.replace(error, host="", process=0)


def test_fused_masks_are_the_same_bytes_and_an_interrupted_run_goes_on(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path, checkpoint: str
) -> None:
    context = make_context(spoiled(shapes, tmp_path / "data"), CONFIG)
    expected, errors = one_after_the_other(context, checkpoint)
    whole = tables.content_hash(expected)
    folder = fused(context, checkpoint)
    assert tables.content_hash(read_all(folder.uri)) == whole
    assert len(read_index(folder.uri)) == 14
    # error rows of the first pool are rows of the fused stage
    assert list(map(unplaced, tables.read_errors(folder.errors_uri))) == list(map(unplaced, errors))
    assert [(e.stage, e.kind) for e in errors] == [("make_cams", "missing"), ("make_cams", "label")]
    # as if it had been killed: one part gone, its images are made again, no other
    parts = read_index(folder.uri).parts
    before = {uri: Path(uri).stat().st_mtime_ns for uri in parts[1:]}
    Path(parts[0]).unlink()
    fused(context, checkpoint)
    assert tables.content_hash(read_all(folder.uri)) == whole
    assert {uri: Path(uri).stat().st_mtime_ns for uri in before} == before
