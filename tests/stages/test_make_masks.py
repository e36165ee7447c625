"""Masks from CAMs: the worker against the method called by hand, and the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latticecrf import CrfParameters
from pmm_ray.config import MasksConfig, RunConfig
from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.mask_methods import MASK_METHODS
from pmm_ray.method.masks import (
    MaskParameters,
    argmax_masks,
    proportional_masks,
)
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.index import index_file, read_all
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.mapping.workers import InputRow
from pmm_ray.runtime.rows.cams import Cams, decode_cam
from pmm_ray.runtime.rows.images import decode_mask, read_image
from pmm_ray.runtime.rows.masks import mask_parameters
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages import make_masks
from pmm_ray.stages.make_masks import mask_worker

MakeContext = Callable[..., RunContext]


def blob_cam(row: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """A cams row with a smooth blob for each of the image's classes."""
    rng = np.random.default_rng(seed)
    height, width = -(-row["height"] // 4), -(-row["width"] // 4)
    y, x = np.mgrid[:height, :width]
    maps = []
    for _ in row["labels"]:
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        maps.append(np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (0.1 * height * width)))
    cam = np.array(maps).reshape(len(maps), height, width).astype("<f2")
    keep = {name: row[name] for name in ("image_id", "height", "width", "labels")}
    return keep | {"cam": cam.tobytes(), "cam_height": height, "cam_width": width}


@pytest.fixture
def photographs(shapes: Manifest) -> Photographs:
    return Photographs(shapes.root, shapes.apply_exif, 10**8, shapes.label_space)


@pytest.fixture
def rows(shapes: Manifest) -> list[InputRow]:
    manifest = tables.read_table(shapes.uri).to_pylist()
    return [{"manifest": row, "cams": blob_cam(row, i)} for i, row in enumerate(manifest)]


@pytest.mark.parametrize("method", ["ppmg", "cam_argmax", "crf_argmax"])
def test_the_worker_is_the_method(
    rows: list[InputRow], photographs: Photographs, shapes: Manifest, method: str
) -> None:
    config = MasksConfig(alpha=4, smoothing=0.2)
    parameters, make = mask_parameters(config), MASK_METHODS[method].load()
    [out] = mask_worker(make, parameters, "lattice", photographs, "make_masks")(rows[:1])
    assert not isinstance(out, ErrorRow)
    image = read_image(shapes.locate(rows[0]["manifest"]["uri"]), apply_exif=False)
    cam = upsample_cam(decode_cam(rows[0]["cams"]), *image.shape[:2])
    labels = rows[0]["manifest"]["labels"]
    if method == "ppmg":
        expected = proportional_masks(image, cam, labels, [MaskParameters(4, 0.2, 0.05)])[0]
    else:
        plain = MaskParameters(4, 0, crf=CrfParameters.seam(), zero_below_threshold=False)
        expected = argmax_masks(image, cam, labels, [plain], use_crf=method == "crf_argmax")[0]
    mask = decode_mask(out["mask_png"])
    np.testing.assert_array_equal(mask, expected)
    assert out["labels"] == sorted(set(np.unique(mask)) - {0})
    assert out["foreground"] == pytest.approx((mask > 0).mean())
    assert out["round"] == 0


def test_semantics_choose_the_papers_text_or_the_released_code() -> None:
    released = mask_parameters(MasksConfig())
    assert released == MaskParameters()
    paper = mask_parameters(MasksConfig(semantics="paper"))
    assert paper == MaskParameters.paper()


def test_an_all_zero_cam_is_background(rows: list[InputRow], photographs: Photographs) -> None:
    row = rows[0]
    row["cams"]["cam"] = bytes(len(row["cams"]["cam"]))
    parameters = mask_parameters(MasksConfig())
    [out] = mask_worker(proportional_masks, parameters, "lattice", photographs, "m")([row])
    assert not isinstance(out, ErrorRow)
    assert out["labels"] == []
    assert out["foreground"] == 0.0


def test_a_cam_that_is_not_finite_is_an_error_row(
    rows: list[InputRow], photographs: Photographs
) -> None:
    row = rows[0]
    cam = np.frombuffer(row["cams"]["cam"], "<f2").copy()
    cam[3] = np.nan
    row["cams"]["cam"] = cam.tobytes()
    parameters = mask_parameters(MasksConfig())
    [out] = mask_worker(proportional_masks, parameters, "lattice", photographs, "m")([row])
    assert isinstance(out, ErrorRow)
    assert out.kind == "nonfinite"


def test_the_same_table_for_any_number_of_tasks_and_any_order(
    make_context: MakeContext, shapes: Manifest, rows: list[InputRow], tmp_path: Path
) -> None:
    context = make_context(shapes, RunConfig())
    hashes = []
    for number, tasks in enumerate((1, 4)):
        cams = [row["cams"] for row in rows]
        if number:
            cams = [cams[i] for i in np.random.default_rng(0).permutation(len(cams))]
        source = storage.join(str(tmp_path), f"cams-{number}.parquet")
        storage.write_bytes(source, tables.to_bytes(pa.Table.from_pylist(cams, tables.CAMS)))
        folder = StageFolder.below(context.run_dir, "make_masks", f"0000000{number}")
        summary = make_masks.run(
            MasksConfig(tasks=tasks, batch_size=1 + 4 * number),
            context,
            folder,
            cams=Cams(index_file(source), str(number)),
        )
        assert (summary.images, summary.errors) == (16, 0)
        table = read_all(folder.uri)
        assert table.schema.equals(tables.MASKS)
        hashes.append(tables.content_hash(table))
    assert hashes[0] == hashes[1]
