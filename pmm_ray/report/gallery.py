"""The gallery: which images are shown, and how their maps and masks are shown."""

# H, W: pixels. K: the image's classes. h, w: stored CAM size.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pmm_ray.labels import LabelSpace
from pmm_ray.method.confusion import from_sparse, mean_iou
from pmm_ray.report.pictures import LegendEntry, class_name, draw_pictures, legend
from pmm_ray.report.run_data import RunData, StageRecord
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import TableIndex, index_file, read_index, scan_parts
from pmm_ray.runtime.core.manifest import Manifest, open_manifest


@dataclass(frozen=True)
class GalleryImage:
    """One image of the gallery; pictures are data URIs, None where the run has none."""

    image_id: str
    labels: tuple[str, ...]
    mean_iou: float | None
    """Of the shown prediction (or mask) on this image alone, 0..1."""
    pictures: tuple[str | None, ...]
    """In the order of `Gallery.columns`."""


@dataclass(frozen=True)
class Gallery:
    columns: tuple[str, ...]
    cards: tuple[GalleryImage, ...]
    legend: tuple[LegendEntry, ...]
    scored_by: str
    """Title of the evaluation that the images were picked by; empty: the first ids."""
    shows_truth: bool


def make_gallery(run: RunData, count: int) -> Gallery | None:
    """Choose at most `count` images and draw them.

    Returns:
        None when there is nothing to show: no manifest or no image.
    """
    if count <= 0 or run.manifest_uri is None:
        return None
    manifest = open_manifest(run.manifest_uri)
    sources = {
        "CAM": run.stage("make_cams"),
        "pseudo-mask": run.stage("make_masks"),
        "prediction": run.stage(f"predict_masks-r{run.final_round}-{run.held_out_split}"),
    }
    shown = [sources[name] for name in ("prediction", "pseudo-mask")]
    scores, scored_by = _scores(run, [s.stage for s in shown if s], manifest.label_space)
    index = index_file(manifest.uri, {"split": [run.held_out_split]})
    if not len(index):
        index = index_file(manifest.uri)
    chosen = pick(scores, sorted(index.image_ids), count)
    rows = manifest_rows(manifest, chosen)
    if not rows:
        return None
    stored = {
        name: stored_rows(record, chosen) for name, record in sources.items() if record is not None
    }
    seen: set[int] = set()
    drawn = [draw_pictures(row, stored, manifest, seen) for row in rows]
    columns = [name for name in drawn[0] if any(pictures[name] for pictures in drawn)]
    cards = tuple(
        GalleryImage(
            image_id=row["image_id"],
            labels=tuple(class_name(manifest.label_space, i) for i in row["labels"]),
            mean_iou=scores.get(row["image_id"]),
            pictures=tuple(pictures[name] for name in columns),
        )
        for row, pictures in zip(rows, drawn, strict=True)
    )
    picked = cards[0].image_id in scores
    return Gallery(
        columns=tuple(columns),
        cards=cards,
        legend=tuple(legend(manifest.label_space, seen)),
        scored_by=scored_by if picked else "",
        shows_truth="truth" in columns,
    )


def pick(scores: dict[str, float], image_ids: list[str], count: int) -> list[str]:
    """The best and the worst half by score, best first; without scores the first ids."""
    known = set(image_ids)
    ranked = sorted(((-s, i) for i, s in scores.items() if i in known))
    ids = [image_id for _, image_id in ranked]
    if not ids:
        return image_ids[:count]
    if len(ids) <= count:
        return ids
    worst = count // 2
    return ids[: count - worst] + ids[len(ids) - worst :]


def _scores(
    run: RunData, shown: Sequence[str], label_space: LabelSpace
) -> tuple[dict[str, float], str]:
    """image_id -> its own mIoU, and the title of the held-out evaluation they come from: of the
    first stage of masks that has one."""
    held_out = {e.masks_stage: e for e in run.evaluations if e.split == run.held_out_split}
    for stage in shown:
        if evaluation := held_out.get(stage):
            index = read_index(evaluation.folder.uri)
            return dict(image_scores(index, label_space.num_classes)), evaluation.title
    return {}, ""


def image_scores(index: TableIndex, num_classes: int) -> Iterator[tuple[str, float]]:
    """(image id, its own mIoU 0..1) of rows of an evaluation; those without a class left out."""
    rows_of_part: dict[str, list[int]] = {}
    for part, number in index.locations().values():
        rows_of_part.setdefault(part, []).append(number)
    for part, numbers in rows_of_part.items():
        for row in tables.read_rows(part, numbers):
            cells = np.array(row["cells"], np.int32)
            counts = np.array(row["counts"], np.int64)
            mean, _ = mean_iou(from_sparse(cells, counts, num_classes))
            if not np.isnan(mean):
                yield row["image_id"], mean


def manifest_rows(manifest: Manifest, image_ids: list[str]) -> list[dict[str, Any]]:
    """The rows of some images in the manifest, in the order of the ids; unknown ones left out."""
    places = index_file(manifest.uri).select(image_ids).locations()
    return tables.read_rows(manifest.uri, [places[i][1] for i in image_ids if i in places])


def stored_rows(record: StageRecord, image_ids: list[str]) -> dict[str, dict[str, Any]]:
    """The rows of some images in a stage's table, by id; images without a row are left out."""
    folder = record.folder.uri
    # a stage that is not finished has no index yet
    index = scan_parts(folder)[0] if record.summary is None else read_index(folder)
    places = index.select(image_ids).locations()
    return {i: tables.read_rows(part, [row])[0] for i, (part, row) in places.items()}
