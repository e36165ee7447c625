"""On GPUs a chunk has photographs of few sizes, so that their views share passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.manifest import Manifest, ManifestRow, open_manifest, write_manifest
from pmm_ray.runtime.core.resources import ClusterResources, Pool
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.mapping import passes
from pmm_ray.runtime.mapping.chunks import sizes_together
from pmm_ray.runtime.mapping.table_stage import run_table_stage

SIZES = [(375, 500), (500, 375), (333, 500), (375, 500), (500, 375), (375, 500), (200, 100)]
SCHEMA = pa.schema([("image_id", pa.string())])


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rows = [
        ManifestRow(f"i{n}", f"/{n}.jpg", (1,), height, width, "train")
        for n, (height, width) in enumerate(SIZES)
    ]
    uri = str(tmp_path / "manifest.parquet")
    write_manifest(uri, rows, LabelSpace.from_names(["cat"]), source="test", exif="ignore")
    return open_manifest(uri)


def test_photographs_of_one_size_follow_each_other_the_largest_first(manifest: Manifest) -> None:
    index = index_file(manifest.uri)
    found = sizes_together(index.ids, index).to_pylist()
    assert found == ["i0", "i3", "i5", "i1", "i4", "i2", "i6"]
    assert sizes_together(["i6", "i4", "i0"], index).to_pylist() == ["i0", "i4", "i6"]


@pytest.mark.parametrize(
    ("gpus", "tables", "want"),
    [
        (1.0, ("manifest",), [["i0", "i3", "i5"], ["i1", "i4", "i2"], ["i6"]]),
        (0.0, ("manifest",), [["i0", "i1", "i2"], ["i3", "i4", "i5"], ["i6"]]),
        # rows of another table are read file by file
        (1.0, ("cams", "manifest"), [["i0", "i1", "i2"], ["i3", "i4", "i5"], ["i6"]]),
    ],
)
def test_a_stage_sends_them_so_to_gpus(
    manifest: Manifest,
    make_context: Callable[..., RunContext],
    monkeypatch: pytest.MonkeyPatch,
    gpus: float,
    tables: Sequence[str],
    want: list[list[str]],
) -> None:
    sent: list[list[str]] = []

    class SeenError(Exception):
        pass

    def stream(chunks: Sequence[str], *arguments: Any) -> None:
        sent.extend(json.loads(chunk)["ids"] for chunk in chunks)
        raise SeenError

    monkeypatch.setattr(passes, "stream", stream)
    monkeypatch.setattr(ClusterResources, "require", lambda *_, **__: None)
    context = make_context(manifest)
    folder = StageFolder.below(context.run_dir, "make_cams", "0")
    index = index_file(manifest.uri)
    with pytest.raises(SeenError):
        run_table_stage(
            context,
            folder,
            inputs=dict.fromkeys(tables, index),
            factory=lambda: pytest.fail("nothing is mapped"),
            schema=SCHEMA,
            pool=Pool(1, actors=True, gpus=gpus),
            batch_size=3,
        )
    assert sent == want
