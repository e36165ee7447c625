"""What changes between two rounds' masks, and whether a segmenter beats its supervision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pmm_ray.labels import LabelSpace
from pmm_ray.method.confusion import confusion_matrix, to_sparse
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import TableIndex, index_file, read_index, scan_parts, write_index
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.rows.masks import mask_row
from pmm_ray.stages import choose_masks, compare_masks

MakeContext = Callable[..., RunContext]
SPACE = LabelSpace.from_names(["cat", "dog"], name="test")


def cells(image_id: str, earlier: list[list[int]], later: list[list[int]]) -> dict[str, Any]:
    matrix = confusion_matrix(np.array(earlier), np.array(later), 3, SPACE.ignore)
    found, counts = to_sparse(matrix)
    ids = {"image_id": image_id, "split": "val"}
    return ids | {"cells": found.tolist(), "counts": counts.tolist()}


def churn(rows: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    return compare_masks.churn(pa.Table.from_pylist(rows, tables.EVALUATION), SPACE)


def test_churn_of_two_images_worked_by_hand() -> None:
    rows = [
        # 255 is left out; one cat pixel of two becomes background
        cells("a", [[0, 0, 1, 1, 255]], [[0, 0, 1, 0, 2]]),
        # the only dog goes, and a cat comes in its place
        cells("b", [[0, 0, 0, 2]], [[0, 0, 1, 1]]),
    ]
    metrics, details = churn(rows)
    assert metrics == {
        "agreement": 0.625,  # 5 of 8
        "mean_iou": pytest.approx((4 / 6 + 1 / 4 + 0) / 3, abs=1e-6),
        "foreground_before": 0.375,
        "foreground_after": 0.375,
    }
    assert details["churn"]["cat"] == {
        "before": 0.25,
        "after": 0.375,
        "lost": 0.5,
        "gained": pytest.approx(2 / 3, abs=1e-6),
        "images_lost": 0,
        "images_gained": 1,
    }
    dog = details["churn"]["dog"]
    assert (dog["lost"], dog["gained"]) == (1.0, 0.0)
    assert (dog["images_lost"], dog["images_gained"]) == (1, 0)
    assert list(churn(rows[:1])[1]["churn"]) == ["background", "cat"]
    # as a table of several parts, some images without a pixel that counts
    table = pa.Table.from_pylist([cells("c", [[255]], [[0]]), *rows], tables.EVALUATION)
    parts = pa.concat_tables([table.slice(0, 2), table.slice(2), table.slice(0, 1)])
    assert compare_masks.churn(parts, SPACE) == (metrics, details)


def test_nothing_in_common_is_no_agreement() -> None:
    metrics, details = churn([])
    assert metrics["agreement"] == 0
    assert details == {"churn": {}}


def masks(manifest: Manifest, folder: Path, masks_of: dict[str, NDArray[Any]]) -> TableIndex:
    space = manifest.label_space
    rows = [mask_row({"image_id": i}, mask, space, 0) for i, mask in masks_of.items()]
    tables.write_rows(str(folder / "part-x.parquet"), rows, tables.MASKS)
    index, _ = scan_parts(str(folder))
    write_index(str(folder), index)
    return read_index(str(folder))


def test_masks_are_compared_image_by_image(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path
) -> None:
    ids = index_file(shapes.uri).image_ids
    rng = np.random.default_rng(0)
    before = {i: rng.integers(0, 4, (9, 11)).astype(np.uint8) for i in ids}
    after = {i: np.where(rng.random((9, 11)) < 0.3, 0, mask) for i, mask in before.items()}
    after[ids[3]] = after[ids[3]][:5]  # of another size
    context = make_context(shapes)
    folder = StageFolder.below(context.run_dir, "compare_masks-r1", "12345678")
    summary = compare_masks.run(
        context,
        folder,
        earlier=masks(shapes, tmp_path / "before", before),
        later=masks(shapes, tmp_path / "after", after),
        stages=("make_masks", "predict_masks-r1"),
    )
    [error] = tables.read_errors(folder.errors_uri)
    assert (error.image_id, error.kind) == (ids[3], "label")
    same = np.array([(before[i] == after[i]).mean() for i in ids if i != ids[3]])
    assert summary.metrics["agreement"] == pytest.approx(same.mean(), abs=1e-6)
    assert not summary.pixel_labels_used
    assert (summary.details["earlier"], summary.details["later"]) == (
        "make_masks",
        "predict_masks-r1",
    )


def evaluation(folder: Path, rows: list[dict[str, Any]]) -> StageFolder:
    tables.write_rows(str(folder / "part-x.parquet"), rows, tables.EVALUATION)
    index, _ = scan_parts(str(folder))
    write_index(str(folder), index)
    return StageFolder(str(folder), folder.name, "12345678")


def test_a_segmenter_is_compared_on_the_images_that_its_supervision_has(tmp_path: Path) -> None:
    truth = [[0, 0, 1, 1]]
    good, bad = [[0, 0, 1, 1]], [[0, 1, 1, 0]]
    segmenter = evaluation(tmp_path / "s", [cells("a", truth, bad), cells("b", truth, good)])
    supervision = evaluation(tmp_path / "m", [cells("a", truth, good)])
    folder = StageFolder.below(str(tmp_path), "choose_masks-r1", "12345678")
    context: Any = SimpleNamespace(manifest=SimpleNamespace(label_space=SPACE))

    def choose(segmenter: StageFolder, supervision: StageFolder) -> Summary:
        return choose_masks.run(
            context, folder, segmenter=segmenter, supervision=supervision, split="val"
        )

    # image b, which the segmenter alone has, would lift it
    worse = choose(segmenter, supervision)
    assert (worse.images, worse.details["update"]) == (1, False)
    assert worse.pixel_labels_used
    assert worse.metrics == {"segmenter": pytest.approx(1 / 3, abs=1e-6), "supervision": 1.0}
    better = choose(supervision, segmenter)
    assert better.details["update"]
    # no better than the masks it learnt from: they stay
    equal = choose(segmenter, segmenter)
    assert not equal.details["update"]
    # background alone is best where a mask is empty
    empty = evaluation(tmp_path / "e", [cells("a", [[0, 0, 255]], [[0, 0, 1]])])
    with pytest.raises(CannotRunError, match=r"no class, only background .*cycles\.update: always"):
        choose(empty, empty)
    nothing = evaluation(tmp_path / "n", [])
    with pytest.raises(CannotRunError, match=r"\(0 images\): see errors/ of n, s\. Set"):
        choose(nothing, segmenter)
