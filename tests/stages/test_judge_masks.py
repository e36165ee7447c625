"""Masks judged without ground truth, by a classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pmm_ray.config import ClassifierConfig, RunConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.method.masks import MaskParameters
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.evidence import evidence
from pmm_ray.nets.registry import build_classifier
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import index_file, read_all, scan_parts, write_index
from pmm_ray.runtime.core.manifest import ManifestRow, open_manifest, write_manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages import judge_masks
from pmm_ray.stages.judge_masks import judge_worker, judged

from ..networks import Colours

SPACE = LabelSpace.from_names(["red", "green", "blue"])
CPU = torch.device("cpu")
MARGINS = (1, 2, 3, 4, 5)
"""Of the masks of `grown`, by their alpha: 3 is right, less is too small, more too large."""


class Vivid(Colours):
    """Class i is what a pixel's channel i has beyond the mean of the three, and beyond 0.4."""

    def cam_scores(self, images_B3HW: Any, labels_BC: Any = None) -> torch.Tensor:
        scores: torch.Tensor = images_B3HW - images_B3HW.mean(dim=1, keepdim=True) - 0.4
        return scores.relu()


def grown(
    image_HW3: NDArray[np.uint8],
    cam_KHW: Any,
    labels: Sequence[int],
    combinations: Sequence[MaskParameters],
    backend: str = "lattice",
) -> list[NDArray[np.uint8]]:
    """The object of the middle, eroded or dilated: by 6 px for each 1 of alpha from 3 on."""
    masks = []
    for parameters in combinations:
        margin = 6 * (int(parameters.alpha) - 3)
        mask = np.zeros(image_HW3.shape[:2], np.uint8)
        mask[28 - margin : 60 + margin, 36 - margin : 92 + margin] = labels[0]
        masks.append(mask)
    return masks


@pytest.fixture
def manifest_uri(tmp_path: Path) -> str:
    """Nine photographs of one object of a colour on grey clutter; no ground truth."""
    rows, draw = [], np.random.default_rng(0)
    for number in range(9):
        label = 1 + number % 3
        pixels = np.repeat(draw.integers(60, 180, (88, 128, 1)), 3, axis=2).astype(np.uint8)
        pixels[28:60, 36:92] = 40
        pixels[28:60, 36:92, label - 1] = 230
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(ManifestRow(f"i{number}", f"{number}.png", (label,), 88, 128, "train", None))
    uri = str(tmp_path / "manifest.parquet")
    write_manifest(uri, rows, SPACE, source="test", exif="ignore")
    return uri


def rows_of(uri: str) -> list[dict[str, Any]]:
    """Joined rows; the maps say nothing, the masks of `grown` do not ask them."""
    empty = np.zeros((1, 22, 32), "<f2").tobytes()
    return [
        {
            "manifest": row,
            "cams": {
                **{name: row[name] for name in ("image_id", "height", "width", "labels")},
                "cam": empty,
                "cam_height": 22,
                "cam_width": 32,
            },
        }
        for row in tables.read_table(uri).to_pylist()
    ]


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_masks, "load_classifier", lambda uri: (Vivid(), {}))


def test_the_right_masks_have_the_largest_lift(
    manifest_uri: str, colours: None, tmp_path: Path
) -> None:
    manifest = open_manifest(manifest_uri)
    photographs = Photographs(manifest.root, False, 10**7, SPACE)
    points = [MaskParameters(alpha=alpha) for alpha in MARGINS]
    worker = judge_worker("", grown, points, "lattice", photographs, {"i3"}, False, "stage")
    found = list(worker(rows_of(manifest_uri)))
    assert all(isinstance(row, dict) for row in found), found
    folder = StageFolder.below(str(tmp_path), "judge_masks", "0")
    tables.write_rows(folder.path("part-0.parquet"), found, judge_masks.JUDGED)  # type: ignore[arg-type]
    write_index(folder.uri, scan_parts(folder.uri)[0])
    lift, area = judged(folder, len(points))
    assert lift.argmax() == 2
    assert lift[2] > lift[1] > lift[0]
    assert lift[2] > lift[3] > lift[4]
    own = grown(np.zeros((88, 128, 3), np.uint8), None, [1], points)
    assert area == pytest.approx([(mask > 0).mean() for mask in own])
    kept = {row["image_id"]: row["masks"] for row in read_all(folder.uri).to_pylist()}
    assert [image_id for image_id, masks in kept.items() if masks] == ["i3"]
    assert [(decode_mask(mask) == 1).sum() for mask in kept["i3"]] == pytest.approx(area * 88 * 128)


def test_what_the_classifier_makes_of_a_mask() -> None:
    image = np.full((32, 32, 3), 100, np.uint8)
    image[:, :16] = (255, 0, 0)
    image[:, 16:24] = (0, 0, 255)
    left = np.zeros((32, 32), np.uint8)
    left[:, :16], left[:, 16:24] = 1, 3
    found = evidence(image, [left, np.zeros_like(left)], [3, 1], Vivid(), CPU)
    above = 2 / 3 - 0.4
    probabilities = 1 / (1 + np.exp([-above / 4, -above / 2]))
    assert found.whole == pytest.approx(probabilities, abs=1e-3)
    np.testing.assert_allclose(found.area, [[0.25, 0], [0.5, 0]])
    # nothing masked: the object alone is the hidden image, the rest is the image
    np.testing.assert_allclose(found.object[:, 1], found.hidden, rtol=1e-5)
    np.testing.assert_allclose(found.rest[:, 1], found.whole, rtol=1e-5)
    assert (found.object[:, 0] > found.rest[:, 0]).all()


def cams_table(uri: str, folder: Path) -> str:
    source = storage.join(str(folder), "cams.parquet")
    rows = [row["cams"] for row in rows_of(uri)]
    storage.write_bytes(source, tables.to_bytes(pa.Table.from_pylist(rows, tables.CAMS)))
    return source


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    """A real one that learnt nothing, with a head that answers to any detail."""
    config = ClassifierConfig(backbone="efficientnet_lite0", weights="none", output_stride=16)
    torch.manual_seed(0)
    uri = str(tmp_path / "model.pt")
    meta = {"config": config.model_dump(mode="json"), "num_foreground": 3}
    network = build_classifier(config, 3)
    torch.nn.init.constant_(network.get_submodule("head").weight, 1e6)  # type: ignore[arg-type]
    save_model(uri, "classifier", network, meta)
    return uri


def test_the_stage_on_ray(
    make_context: Callable[..., RunContext], manifest_uri: str, classifier: str, tmp_path: Path
) -> None:
    context = make_context(open_manifest(manifest_uri), RunConfig())
    folder = StageFolder.below(context.run_dir, "judge_masks", "00000000")
    summary = judge_masks.run(
        context.config.masks,
        context,
        folder,
        cams=index_file(cams_table(manifest_uri, tmp_path)),
        checkpoint_uri=classifier,
        method="cam_argmax",
        combinations=[{"alpha": 1.0}, {"alpha": 4.0}],
        sheet=["i0", "i5"],
    )
    assert (summary.images, summary.errors, summary.pixel_labels_used) == (9, 0, False)
    rows = summary.details["combinations"]
    # the maps are empty, and so are the masks: no lift
    assert [row["alpha"] for row in rows] == [1, 4]
    assert [row["area"] for row in rows] == [0, 0]
    assert [row["lift"] for row in rows] == pytest.approx([0, 0], abs=1e-3)
    best = max(rows, key=lambda row: row["lift"])
    assert summary.metrics == {"lift": best["lift"]}
    assert summary.details["chosen"] == {"alpha": best["alpha"]}
    assert Path(folder.path("sweep.json")).exists()
    assert Path(folder.path("sweep.parquet")).exists()


def test_where_nothing_could_be_judged_nothing_is_chosen(tmp_path: Path) -> None:
    folder = StageFolder.below(str(tmp_path), "judge_masks", "0")
    tables.write_rows(folder.path("part-0.parquet"), [], judge_masks.JUDGED)
    write_index(folder.uri, scan_parts(folder.uri)[0])
    with pytest.raises(CannotRunError, match="not one image could be judged"):
        judged(folder, 2)
