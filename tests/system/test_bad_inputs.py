"""Every kind of bad photograph: the run ends, good rows stay, bad ones are error rows."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.index import index_file, read_all
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.cams import Cams
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.stages import make_cams, make_masks

from ..training import untrained_classifier

MakeContext = Callable[..., RunContext]
GOOD = ("good-1", "good-2")
BAD = "odd-one"


def photograph(height: int = 40, width: int = 56, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep_png() -> bytes:
    grey = np.asarray(photograph().convert("L"), np.uint16) * 257
    return encode(Image.fromarray(grey), "PNG")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    return encode(photograph(), exif=exif)


# file ending, bytes (None: no file), labels, kind of the expected error row, or the mask's size
CASES: dict[str, tuple[str, bytes | None, str, str | tuple[int, int]]] = {
    "truncated JPEG": ("jpg", encode(photograph())[:700], "a", "decode"),
    "zero-byte file": ("jpg", b"", "a", "decode"),
    "missing file": ("jpg", None, "a", "missing"),
    "text in disguise": ("jpg", b"not a photograph", "a", "decode"),
    "16-bit PNG": ("png", deep_png(), "a", (40, 56)),
    "CMYK JPEG": ("jpg", encode(photograph().convert("CMYK")), "a", (40, 56)),
    "grey JPEG": ("jpg", encode(photograph().convert("L")), "a;b", (40, 56)),
    "EXIF-rotated JPEG": ("jpg", rotated(), "a", (56, 40)),
    "unlabelled image": ("jpg", encode(photograph()), "", "label"),
    "label outside the space": ("jpg", encode(photograph()), "z", "label"),
    "1x1 image": ("png", encode(photograph(1, 1), "PNG"), "a", (1, 1)),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return untrained_classifier(tmp_path_factory.mktemp("model"))


def make_folder(root: Path, name: str) -> None:
    ending, data, labels, _ = CASES[name]
    (root / "images").mkdir(parents=True)
    for seed, good in enumerate(GOOD):
        (root / "images" / f"{good}.jpg").write_bytes(encode(photograph(seed=seed)))
    if data is not None:
        (root / "images" / f"{BAD}.{ending}").write_bytes(data)
    (root / "classes.txt").write_text("a\nb\n")
    lines = [f"{good},a;b" for good in GOOD] + [f"{BAD},{labels}"]
    (root / "labels.csv").write_text("image_id,labels\n" + "\n".join(lines) + "\n")


def run_stages(
    context: RunContext, checkpoint: str
) -> tuple[dict[str, dict[str, Any]], list[ErrorRow]]:
    """(masks by id, error rows) of the CAM and mask stages."""
    config = context.config
    images = index_file(context.manifest.uri)
    cams = StageFolder.below(context.run_dir, "make_cams", "00000000")
    make_cams.run(config.cams, context, cams, images=images, checkpoint_uri=checkpoint)
    masks = StageFolder.below(context.run_dir, "make_masks", "00000000")
    make_masks.run(config.masks, context, masks, cams=Cams.of(cams))
    errors = tables.read_errors(cams.errors_uri) + tables.read_errors(masks.errors_uri)
    return {row["image_id"]: row for row in read_all(masks.uri).to_pylist()}, errors


SMALL = RunConfig.model_validate(
    {"cams": {"scales": [1.0], "flip": False, "actors": 1}, "masks": {"crf": {"iterations": 2}}}
)


@pytest.mark.parametrize("name", list(CASES))
def test_a_bad_image_is_a_row_and_its_neighbours_get_masks(
    make_context: MakeContext, tmp_path: Path, checkpoint: str, name: str
) -> None:
    make_folder(tmp_path / "photos", name)
    report = import_folder(str(tmp_path / "photos"), str(tmp_path / "data"))
    masks, errors = run_stages(make_context(report.manifest, SMALL), checkpoint)
    errors = [*report.errors, *errors]
    expected = CASES[name][3]
    assert set(GOOD) <= set(masks)
    assert len(masks) + len(errors) == 3
    if isinstance(expected, str):
        assert [(e.image_id, e.kind) for e in errors] == [(BAD, expected)]
        assert errors[0].message
    else:
        assert decode_mask(masks[BAD]["mask_png"]).shape == expected


def test_what_breaks_after_the_import_is_found_by_the_stage(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path, checkpoint: str
) -> None:
    """The file vanishes, is cut or replaced, or the manifest itself holds a foreign label."""
    shutil.copytree(shapes.root, tmp_path / "data")
    uri = str(tmp_path / "data" / "manifest.parquet")
    table = tables.read_table(uri)
    rows = table.to_pylist()
    files = [tmp_path / "data" / row["uri"] for row in rows]
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:200])
    files[2].write_bytes(encode(photograph(9, 9)))
    rows[3]["labels"] = [77]
    rows[4]["labels"] = []
    storage.write_bytes(uri, tables.to_bytes(pa.Table.from_pylist(rows, table.schema)))
    masks, errors = run_stages(make_context(open_manifest(uri), SMALL), checkpoint)
    kinds = {error.image_id: error.kind for error in errors}
    ids = [row["image_id"] for row in rows]
    assert kinds == dict(
        zip(ids[:5], ["missing", "decode", "decode", "label", "label"], strict=True)
    )
    assert set(masks) == set(ids[5:])


def test_above_the_budget_the_command_ends_with_3(tmp_path: Path) -> None:
    (tmp_path / "photos" / "images").mkdir(parents=True)
    for number in range(11):
        (tmp_path / "photos" / "images" / f"empty-{number}.jpg").write_bytes(b"")
    (tmp_path / "photos" / "images" / "good.jpg").write_bytes(encode(photograph()))
    (tmp_path / "recipe.yaml").write_text("data: {source: folder}\n")
    command = [sys.executable, "-m", "pmm_ray.cli", "run", str(tmp_path / "recipe.yaml")]
    command += ["--set", f"data.root={tmp_path / 'photos'}", "--run-dir", str(tmp_path / "run")]
    command += ["--until", "import_data"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 3, done.stderr
    assert "11 images failed, the budget is 10" in done.stderr
    assert "empty-0: decode" in done.stderr
