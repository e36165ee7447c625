"""Sweeps over mask parameters: what was chosen and how, and their masks on a contact sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from pmm_ray.report.charts import sweep_chart
from pmm_ray.report.gallery import manifest_rows, stored_rows
from pmm_ray.report.pictures import LegendEntry, jpeg, legend, overlay_mask, photograph
from pmm_ray.report.run_data import RunData, StageRecord
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.runtime.core.stage import Summary
from pmm_ray.runtime.rows import images

AUTO = "sweep_masks-alpha"
"""The stage of `masks.alpha: auto`."""
SWEEPS = ("sweep_masks", "judge_masks", AUTO)
"""Stages of sweeps; those of the paper's tables are shown as tables."""
SCORES = {
    "mean_iou": "mIoU %",
    "pixel_accuracy": "pixel accuracy %",
    "lift": "lift %",
    "area": "masked area %",
}
"""What a combination may be scored by, the first one that is there decides -> its name."""
_MOST_COLUMNS = 12


@dataclass(frozen=True)
class SheetRow:
    image_id: str
    labels: tuple[str, ...]
    pictures: tuple[str, ...]
    """Data URIs: the photograph, then one for each of the sheet's settings."""


@dataclass(frozen=True)
class Sheet:
    """Masks of a few images under every setting, laid over the photographs."""

    columns: tuple[str, ...]
    rows: tuple[SheetRow, ...]
    legend: tuple[LegendEntry, ...]
    settings: int
    """How many there are; the columns are the best of them, in the order of the sweep."""


@dataclass(frozen=True)
class Sweep:
    """A finished sweep as the page shows it."""

    stage: str
    details: dict[str, Any]
    scores: dict[str, str]
    """The part of `SCORES` that it has."""
    how: str
    chart: Markup
    sheet: Sheet | None

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """The settings, best first."""
        return ranked(self.details)


def sweeps_of(run: RunData) -> list[Sweep]:
    """The finished sweeps of a run that found scores."""
    found = []
    for record in run.stages:
        if record.stage not in SWEEPS or record.summary is None:
            continue
        details = record.summary.details
        if not details["combinations"]:
            continue
        scores, how = scores_of(details), how_chosen(record.summary)
        chart = sweep_chart(details, next(iter(scores)))
        found.append(Sweep(record.stage, details, scores, how, chart, _sheet(run, record)))
    return found


def scores_of(details: dict[str, Any]) -> dict[str, str]:
    """What a sweep's combinations are scored by, of `SCORES`, the one that decides first."""
    return {name: title for name, title in SCORES.items() if name in details["combinations"][0]}


def ranked(details: dict[str, Any]) -> list[dict[str, Any]]:
    """The combinations of a sweep, best first; in their order where none has a score."""
    name = next(iter(scores_of(details)))
    return sorted(details["combinations"], key=lambda row: -(row[name] or 0.0))


def how_chosen(summary: Summary) -> str:
    """`masks.alpha 3, by the ground truth of 100 images (val)`, of a finished sweep."""
    details, count = summary.details, f"{summary.images} images"
    if not details["chosen"]:
        why = details.get("not_scored", f"the classifier sees no class in any of {count}")
        return f"nothing chosen: {why}"
    values = ", ".join(f"masks.{name} {value:g}" for name, value in details["chosen"].items())
    if summary.pixel_labels_used:
        return f"{values}, by the ground truth of {count} ({details['split']})"
    return f"{values}, without ground truth: by what the classifier sees in the masks of {count}"


def _sheet(run: RunData, record: StageRecord) -> Sheet | None:
    """Of a sweep whose images kept their masks; a photograph that cannot be read has no row."""
    details = record.summary.details if record.summary is not None else {}
    if not details.get("sheet") or run.manifest_uri is None:
        return None
    best = ranked(details)[:_MOST_COLUMNS]
    shown = [n for n, row in enumerate(details["combinations"]) if row in best]
    try:
        manifest = open_manifest(run.manifest_uri)
    except CannotRunError:
        return None
    space, seen = manifest.label_space, set[int]()
    rows = []
    stored = stored_rows(record, details["sheet"])
    for row in manifest_rows(manifest, sorted(stored)):
        try:
            photo = photograph(row, manifest)
        except RowError:
            continue
        kept = stored[row["image_id"]]["masks"]
        masks = [images.decode_mask(kept[n]) for n in shown]
        seen.update(*(np.unique(mask).tolist() for mask in masks))
        pictures = [photo, *(overlay_mask(photo, mask, space) for mask in masks)]
        names = tuple(space.names[label] for label in row["labels"])
        rows.append(SheetRow(row["image_id"], names, tuple(map(jpeg, pictures))))
    columns = tuple(_setting(details["combinations"][n], details["fields"]) for n in shown)
    entries = tuple(legend(space, seen - {0}))
    return Sheet(columns, tuple(rows), entries, len(details["combinations"]))


def _setting(row: dict[str, float], fields: Sequence[str]) -> str:
    return ", ".join(f"{name} {row[name]:g}" for name in fields)


def choice_lines(run: RunData) -> Iterator[str]:
    """What `masks.alpha: auto` chose and how, for the console."""
    for summary in run.summaries:
        if summary.stage == AUTO:
            yield f"masks.alpha: auto: {how_chosen(summary)}"
