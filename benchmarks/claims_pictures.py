"""Pictures of `claims.py`: the photographs that a step helps and harms most, before and after."""

# H, W: pixels.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from claims_results import folder_of, manifest_of, scored, stage_of
from claims_rows import Claim, Side, claims
from claims_score import Scored, changes
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pmm_ray.config import MasksConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.report.pictures import overlay_cam
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.index import index_file, read_index
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.rows.images import decode_mask, read_image
from pmm_ray.runtime.rows.masks import mask_parameters
from pmm_ray.stages.make_masks import masks_of_row, way_to_masks
from pmm_ray.stages.sweep_masks import combined

EACH = 3
"""Photographs that gain most, and that lose most."""
_SIDE = 220


def draw(results: Mapping[str, Any], out: Path) -> None:
    """`OUT/pictures/CLAIM.png` of every claim, of the first seed that has both sides."""
    for claim in claims():
        for name, seed in results["seeds"].items():
            place = out / f"seed-{name}"
            if not all(stage_of(side, seed) for side in (claim.after, claim.before)):
                continue
            target = out / "pictures" / f"{claim.name}.png"
            target.parent.mkdir(exist_ok=True)
            picture(claim, seed, place).save(target)
            break


def picture(claim: Claim, seed: Mapping[str, Any], place: Path) -> Image.Image:
    """A row for each photograph: it, its truth, before, after; the largest gains first."""
    manifest = manifest_of(seed, place)
    classes = manifest.label_space.num_classes
    both = [scored(side, seed, place, classes) for side in (claim.before, claim.after)]
    before, after = (side for side in both if side is not None)
    ranked = changes(after, before)
    chosen = [*reversed(ranked[-EACH:]), *reversed(ranked[:EACH])]
    places = index_file(manifest.uri).select([i for _, i in chosen]).locations()
    lines = []
    for change, image_id in chosen:
        (row,) = tables.read_rows(manifest.uri, [places[image_id][1]])
        image = read_image(manifest.locate(row["uri"]), apply_exif=manifest.apply_exif)
        truth = decode_mask(storage.read_bytes(manifest.locate(row["ground_truth_uri"])))
        panels = [Image.fromarray(image), coloured(truth, manifest.label_space)]
        for side, found in ((claim.before, before), (claim.after, after)):
            panels += side_panels(side, found, seed, place, row, image, manifest.label_space)
        lines.append((f"{image_id}: {change:+.1f}", panels))
    return sheet(claim.title, lines)


def side_panels(
    side: Side,
    found: Scored,
    seed: Mapping[str, Any],
    place: Path,
    row: Mapping[str, Any],
    image_HW3: NDArray[np.uint8],
    space: LabelSpace,
) -> list[Image.Image]:
    """A side's mask of a photograph, and before it the CAM that it was made of, if it was."""
    stage = stage_of(side, seed)
    assert stage is not None, "only finished sides are drawn"
    unit, image_id = seed[side.unit], row["image_id"]
    details = folder_of(unit, stage, place).finished().details
    if not side.cams:
        masks = folder_of(unit, details["masks_stage"], place)
        return [coloured(decode_mask(stored(masks, image_id)["mask_png"]), space)]
    cams = {"cams": stored(folder_of(unit, side.cams, place), image_id)}
    # not the folder's resolved.yaml, which is the last unit's
    config, best = MasksConfig.model_validate(unit["masks"]), details["combinations"][found.best]
    fields = {name: best[name] for name in details["fields"]}
    way, parameters = way_to_masks(details["method"]), mask_parameters(combined(config, fields))
    (mask,) = masks_of_row(way, image_HW3, cams, [parameters], "lattice")
    photo = Image.fromarray(image_HW3)
    return [overlay_cam(photo, cams["cams"], space), coloured(mask, space)]


def stored(folder: StageFolder, image_id: str) -> dict[str, Any]:
    """A photograph's row of a finished table."""
    part, number = read_index(folder.uri).select([image_id]).locations()[image_id]
    return tables.read_rows(part, [number])[0]


def coloured(mask_HW: NDArray[Any], space: LabelSpace) -> Image.Image:
    """A mask in its palette's colours."""
    image = Image.fromarray(np.where(mask_HW == space.ignore, 255, mask_HW).astype(np.uint8))
    image.putpalette(space.palette.tobytes())
    return image.convert("RGB")


def sheet(title: str, lines: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Rows of panels under one title."""
    columns = max((len(panels) for _, panels in lines), default=1)
    whole = Image.new("RGB", (columns * _SIDE, 20 + len(lines) * (_SIDE + 16)), "white")
    pen = ImageDraw.Draw(whole)
    pen.text((4, 4), f"{title}: photograph, truth, before, after", fill="black")
    for number, (text, panels) in enumerate(lines):
        top = 20 + number * (_SIDE + 16)
        pen.text((4, top), text, fill="black")
        for column, panel in enumerate(panels):
            panel.thumbnail((_SIDE - 4, _SIDE))
            whole.paste(panel, (column * _SIDE, top + 14))
    return whole
