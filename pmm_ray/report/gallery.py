"""The gallery: which images are shown, and how their maps and masks are shown."""

# H, W: pixels. K: the image's classes. h, w: stored CAM size.

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pmm_ray.labels import LabelSpace
from pmm_ray.method.confusion import from_sparse, mean_iou
from pmm_ray.report.run_data import Evaluation, RunData, StageRecord
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.index import index_file, read_all, read_index, scan_parts
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.rows import images

THUMBNAIL = 240
"""Long side of a picture, px."""
_JPEG_QUALITY = 82
_CAM_OPACITY = 0.8


@dataclass(frozen=True)
class LegendEntry:
    name: str
    colour: str
    """`#rrggbb`."""


@dataclass(frozen=True)
class Card:
    """One image of the gallery; pictures are data URIs, None where the run has none."""

    image_id: str
    split: str
    labels: tuple[str, ...]
    mean_iou: float | None
    """Of the shown prediction (or mask) on this image alone, 0..1."""
    pictures: tuple[str | None, ...]
    """In the order of `Gallery.columns`."""


@dataclass(frozen=True)
class Gallery:
    columns: tuple[str, ...]
    cards: tuple[Card, ...]
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
    scores, scored_by = _scores(run, manifest.label_space)
    index = index_file(manifest.uri, {"split": [run.held_out_split]})
    if not len(index):
        index = index_file(manifest.uri)
    chosen = pick(scores, sorted(index.image_ids), count)
    places = index.select(chosen).locations()
    # the rows of the manifest, in the order chosen
    positions = [places[image_id][1] for image_id in chosen if image_id in places]
    rows = tables.read_rows(manifest.uri, positions)
    if not rows:
        return None
    sources = {
        "CAM": run.last_stage("make_cams"),
        "pseudo-mask": run.stage("make_masks"),
        "prediction": run.stage(f"predict_masks-r{run.final_round}-{run.held_out_split}"),
    }
    stored = {
        name: stored_rows(record, chosen) for name, record in sources.items() if record is not None
    }
    seen: set[int] = set()
    drawn = [_draw(row, stored, manifest, seen) for row in rows]
    columns = [name for name in drawn[0] if any(pictures[name] for pictures in drawn)]
    cards = tuple(
        Card(
            image_id=row["image_id"],
            split=row["split"],
            labels=tuple(_name(manifest.label_space, i) for i in row["labels"]),
            mean_iou=scores.get(row["image_id"]),
            pictures=tuple(pictures[name] for name in columns),
        )
        for row, pictures in zip(rows, drawn, strict=True)
    )
    shown = cards[0].image_id in scores
    return Gallery(
        columns=tuple(columns),
        cards=cards,
        legend=tuple(legend(manifest.label_space, seen)),
        scored_by=scored_by if shown else "",
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


def _scores(run: RunData, label_space: LabelSpace) -> tuple[dict[str, float], str]:
    """image_id -> its own mIoU, and the title of the last held-out evaluation they come from."""
    held_out = [e for e in run.evaluations if e.split == run.held_out_split]
    if not held_out:
        return {}, ""
    evaluation = held_out[-1]
    return dict(_image_scores(evaluation, label_space.num_classes)), evaluation.title


def _image_scores(evaluation: Evaluation, num_classes: int) -> Iterator[tuple[str, float]]:
    for batch in read_all(evaluation.folder.uri).to_batches(1000):
        for row in batch.to_pylist():
            cells = np.array(row["cells"], np.int32)
            counts = np.array(row["counts"], np.int64)
            mean, _ = mean_iou(from_sparse(cells, counts, num_classes))
            if not np.isnan(mean):
                yield row["image_id"], mean


def stored_rows(record: StageRecord, image_ids: list[str]) -> dict[str, dict[str, Any]]:
    """The rows of some images in a stage's table, by id; images without a row are left out."""
    folder = record.folder.uri
    # a stage that is not finished has no index yet
    index = scan_parts(folder)[0] if record.summary is None else read_index(folder)
    places = index.select(image_ids).locations()
    return {i: tables.read_rows(part, [row])[0] for i, (part, row) in places.items()}


def _draw(
    row: dict[str, Any],
    stored: dict[str, dict[str, dict[str, Any]]],
    manifest: Manifest,
    seen: set[int],
) -> dict[str, str | None]:
    """Column -> data URI of one image; `seen` collects the ids that appear in its masks."""
    image_id = row["image_id"]
    space = manifest.label_space
    pictures: dict[str, str | None] = dict.fromkeys(
        ("image", "CAM", "pseudo-mask", "prediction", "truth")
    )
    size = thumbnail_size(row["height"], row["width"])
    with contextlib.suppress(RowError, ValueError):  # a bad image shows as an empty cell
        image_HW3 = images.read_image(manifest.locate(row["uri"]), apply_exif=manifest.apply_exif)
        photo = Image.fromarray(image_HW3).resize(size, Image.Resampling.LANCZOS)
        pictures["image"] = jpeg(photo)
        cam = stored.get("CAM", {}).get(image_id)
        if cam is not None:
            pictures["CAM"] = jpeg(overlay_cam(photo, cam, space))
            seen.update(cam["labels"])
    for name in ("pseudo-mask", "prediction"):
        mask = stored.get(name, {}).get(image_id)
        if mask is not None:
            pictures[name] = _mask(images.decode_mask(mask["mask_png"]), size, space, seen)
    if row["ground_truth_uri"]:
        with contextlib.suppress(RowError, ValueError, OSError):
            uri = manifest.locate(row["ground_truth_uri"])
            truth = images.decode_mask(storage.read_bytes(uri))  # contiguous, as all tables
            pictures["truth"] = _mask(truth, size, space, seen)
    return pictures


def overlay_cam(photo: Image.Image, row: dict[str, Any], space: LabelSpace) -> Image.Image:
    """The grey photograph, tinted with each class's palette colour where its map is high.

    Args:
        photo: RGB, of the size to draw.
        row: a row of the cams table.
    """
    grey_HW3 = np.asarray(photo.convert("L").convert("RGB"), np.float32)
    if not row["labels"]:
        return photo.convert("L").convert("RGB")
    stored = np.frombuffer(row["cam"], "<f2").reshape(-1, row["cam_height"], row["cam_width"])
    cam_KHW = np.stack(
        [
            np.asarray(
                Image.fromarray(channel).resize(photo.size, Image.Resampling.BILINEAR), np.float32
            )
            for channel in np.nan_to_num(stored.astype(np.float32))
        ]
    ).clip(0, 1)
    colours_K3 = space.palette[[i % 256 for i in row["labels"]]].astype(np.float32)
    total_HW = cam_KHW.sum(0)
    tint_HW3 = np.tensordot(cam_KHW, colours_K3, (0, 0)) / np.maximum(total_HW, 1e-6)[..., None]
    opacity_HW1 = _CAM_OPACITY * cam_KHW.max(0)[..., None]
    blend_HW3 = grey_HW3 * (1 - opacity_HW1) + tint_HW3 * opacity_HW1
    return Image.fromarray(np.round(blend_HW3).astype(np.uint8))


def _mask(mask_HW: NDArray[Any], size: tuple[int, int], space: LabelSpace, seen: set[int]) -> str:
    """A small indexed PNG in the palette's colours."""
    seen.update(np.unique(mask_HW).tolist())
    whole = Image.fromarray(mask_HW.astype(np.int32))
    small_HW = np.asarray(whole.resize(size, Image.Resampling.NEAREST))
    colours = np.where(small_HW == space.ignore, 255, small_HW % 256).astype(np.uint8)
    image = Image.fromarray(colours)
    image.putpalette(space.palette.tobytes())
    return _data_uri(image, "PNG", optimize=True)


def thumbnail_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) with the long side at `THUMBNAIL`; small images are enlarged to it."""
    scale = THUMBNAIL / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def legend(space: LabelSpace, seen: set[int]) -> Iterator[LegendEntry]:
    """The names and colours of ids that appear in masks."""
    for i in sorted(seen):
        colour = space.palette[255 if i == space.ignore else i % 256]
        name = "not labelled" if i == space.ignore else _name(space, i)
        yield LegendEntry(name, "#" + bytes(colour).hex())


def _name(space: LabelSpace, label: int) -> str:
    return space.names[label] if label < space.num_classes else f"unknown {label}"


def jpeg(image: Image.Image) -> str:
    """The picture as a data URI."""
    return _data_uri(image, "JPEG", quality=_JPEG_QUALITY)


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
