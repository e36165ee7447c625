"""What each step of the ladder mends: the held-out image that gains most, before and after."""

# H, W: pixels.

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from pmm_ray.method.mask_methods import MASK_METHODS
from pmm_ray.report.gallery import image_scores, manifest_rows, stored_rows
from pmm_ray.report.pictures import LegendEntry, draw_pictures, legend, mask_picture, thumbnail_size
from pmm_ray.report.run_data import Evaluation, RunData
from pmm_ray.runtime.core.index import read_index
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.rows import images

_WHAT = {
    "crf_argmax": "The CRF carries the maps to edges of colour, all classes at once.",
    "ppmg": "CVS raises what a peak outshines. Each class has a CRF against its own background; "
    "where two overlap, the pixel goes to the class of whose total it holds the larger share.",
}
_FIRST_SEGMENTER = (
    "The segmenter has seen all masks: what one gets wrong, most others get right. "
    "It is not told an image's classes."
)
_LATER_SEGMENTER = "This segmenter learnt from the masks that the one before it made."
# of so many images the scores are compared, the first by id that all rungs have
_MOST_IMAGES = 2000


@dataclass(frozen=True)
class Gain:
    """One step of the ladder."""

    before: Evaluation
    after: Evaluation
    what: str
    """What the step does; empty: a step that is not the paper's."""
    better: int
    worse: int
    """Images whose own mIoU rises or falls by it, of `compared`."""
    compared: int
    image_id: str
    """Of the image that gains most; empty: none gains."""
    scores: tuple[float, float]
    """Its own mIoU before and after, 0..1."""
    pictures: tuple[str | None, ...]
    """Data URIs: the image, the masks before and after, the truth; none where none gains."""


@dataclass(frozen=True)
class Gains:
    steps: tuple[Gain, ...]
    legend: tuple[LegendEntry, ...]


def gains_of(run: RunData) -> Gains | None:
    """The steps of the held-out ladder; None where it has no two rungs on the same images.

    Masks and segmenters of tables are no rungs.
    """
    uri, split = run.manifest_uri, run.held_out_split
    known = [f"make_masks-{method}" for method in MASK_METHODS]
    segmenter = re.compile(rf"predict_masks-r\d+-{re.escape(split)}")
    rungs = [
        e
        for e in run.evaluations
        if e.split == split
        and (e.masks_stage in ("make_masks", *known) or segmenter.fullmatch(e.masks_stage))
    ]
    if uri is None or len(rungs) < 2:
        return None
    manifest, seen = open_manifest(uri), set[int]()
    steps = tuple(_steps(run, rungs, manifest, seen))
    return Gains(steps, tuple(legend(manifest.label_space, seen))) if steps else None


def _steps(
    run: RunData, rungs: list[Evaluation], manifest: Manifest, seen: set[int]
) -> Iterator[Gain]:
    indexes = [read_index(rung.folder.uri) for rung in rungs]
    common = sorted(set[str].intersection(*(set(index.image_ids) for index in indexes)))
    chosen, count = common[:_MOST_IMAGES], manifest.label_space.num_classes
    scores = [dict(image_scores(index.select(chosen), count)) for index in indexes]
    for (before, old), (after, new) in pairwise(zip(rungs, scores, strict=True)):
        change = {i: new[i] - old[i] for i in chosen if i in old and i in new}
        if not change:
            continue
        most = max(change, key=change.__getitem__)
        gains = change[most] > 0
        yield Gain(
            before=before,
            after=after,
            what=_what(run, after),
            better=sum(value > 0 for value in change.values()),
            worse=sum(value < 0 for value in change.values()),
            compared=len(change),
            image_id=most if gains else "",
            scores=(old[most], new[most]),
            pictures=_pictures(run, manifest, most, (before, after), seen) if gains else (),
        )


def _what(run: RunData, rung: Evaluation) -> str:
    """What made a rung of the masks before it."""
    first, _, rest = rung.masks_stage.partition("-")
    if first == "make_masks":
        return _WHAT.get(rest or str(run.setting("masks", "method")), "")
    return _FIRST_SEGMENTER if rest.startswith("r0-") else _LATER_SEGMENTER


def _pictures(
    run: RunData, manifest: Manifest, image_id: str, rungs: tuple[Evaluation, ...], seen: set[int]
) -> tuple[str | None, ...]:
    (row,) = manifest_rows(manifest, [image_id])
    size = thumbnail_size(row["height"], row["width"])
    masks: list[str | None] = []
    for rung in rungs:
        record = run.stage(rung.masks_stage)
        stored = stored_rows(record, [image_id]) if record is not None else {}
        found = [images.decode_mask(mask["mask_png"]) for mask in stored.values()]
        pictures = [mask_picture(mask, size, manifest.label_space, seen) for mask in found]
        masks += pictures or [None]
    drawn = draw_pictures(row, {}, manifest, seen)
    return (drawn["image"], *masks, drawn["truth"])
