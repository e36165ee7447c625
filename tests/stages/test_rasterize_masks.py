"""Masks drawn on Ray from imported objects: whole, resumed, and only where they are wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pmm_ray.config import DataConfig
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import read_all
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.stages import rasterize_masks

from ..sources.coco_tree import annotation, box, entry, photo, write

MakeContext = Callable[..., RunContext]
KINDS = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]


def test_masks_are_drawn_and_finished_ones_are_not_drawn_again(
    make_context: MakeContext, tmp_path: Path
) -> None:
    images = [entry(i, f"{i}.jpg") for i in range(1, 7)]
    for i in range(1, 7):
        photo(tmp_path / f"{i}.jpg")
    hidden = [annotation(1, 2, [box(2, 2, 2, 2)])]
    later = [annotation(i, 1, [box(0, 0, 5 + i, 10)]) for i in range(1, 6)]
    bad = [annotation(6, 1, {"counts": [3]})]
    path = write(tmp_path / "data.json", images, hidden + later + bad, KINDS)
    out = tmp_path / "out"
    manifest = import_coco(str(path), str(out)).manifest
    assert rasterize_masks.objects_fingerprint(manifest.uri)
    context = make_context(manifest)
    folder = StageFolder.below(str(out), rasterize_masks.STAGE, "12345678")
    summary = rasterize_masks.run(DataConfig(), context, folder)
    assert (summary.images, summary.errors) == (5, 1)
    assert summary.pixel_labels_used
    assert summary.details["counts"] == {"masks": 5, "masks without one of the image's labels": 1}
    assert [e.image_id for e in tables.read_errors(folder.errors_uri)] == ["6"]
    for i in range(1, 6):
        mask = decode_mask((out / f"masks/{i}.png").read_bytes())
        assert mask.dtype == np.uint8
        assert int((mask == 1).sum()) == (5 + i) * 10
    drawn = {row["image_id"]: row for row in read_all(folder.uri).to_pylist()}
    assert (drawn["1"]["labels"], drawn["1"]["hidden"]) == ([1], [2])
    # a second attempt finds all done: a mask taken away is not drawn again
    (out / "masks/3.png").unlink()
    rasterize_masks.run(DataConfig(), context, folder)
    assert not (out / "masks/3.png").exists()


def test_the_rules_decide_the_stage(tmp_path: Path) -> None:
    photo(tmp_path / "1.jpg")
    hashes = []
    for width in (5, 6):
        path = write(
            tmp_path / "data.json",
            [entry(1, "1.jpg")],
            [annotation(1, 1, [box(0, 0, width, 10)])],
            KINDS,
        )
        uri = import_coco(str(path), str(tmp_path / "out")).manifest.uri
        hashes += [
            rasterize_masks.stage(DataConfig(overlap=overlap), DataSet.open(uri)).hash
            for overlap in ("last", "ignore")
        ]
    assert len(set(hashes)) == 4
