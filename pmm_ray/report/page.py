"""`RUN/report.html`: one self-contained page, readable offline, in a browser of any width."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pmm_ray.report.charts import loss_chart
from pmm_ray.report.console import format_rate, format_scores, rows_of
from pmm_ray.report.cycles import cycles_of
from pmm_ray.report.gains import Gains, gains_of
from pmm_ray.report.gallery import Gallery, make_gallery
from pmm_ray.report.run_data import Evaluation, RunData, load_run
from pmm_ray.report.sweeps import sweeps_of
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.core.progress import format_seconds

_MOST_ERRORS = 100


@dataclass(frozen=True)
class ClassTable:
    """IoU of every class under every rung of one split's ladder."""

    split: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    means: tuple[float, ...]
    excluded: tuple[str, ...]


@dataclass(frozen=True)
class ErrorGroup:
    stage: str
    kind: str
    count: int
    example: ErrorRow


def build_report(run_dir: str) -> str:
    """Write `RUN/report.html`. What a run does not have yet is left out of the page.

    Returns:
        The uri of the file.

    Raises:
        CannotRunError: the folder is not a run.
    """
    run = load_run(run_dir)
    uri = storage.join(run.run_dir, "report.html")
    # an argument of the command may not be UTF-8
    storage.write_bytes(uri, render(run).encode(errors="backslashreplace"))
    return uri


def render(run: RunData) -> str:
    """The page as HTML text."""
    gallery: Gallery | None = None
    gains: Gains | None = None
    gallery_note = ""
    try:
        count = int(run.setting("report", "gallery"))
        gains = gains_of(run) if count > 0 else None
        gallery = make_gallery(run, count)
    except CannotRunError as error:
        gallery_note = str(error)
    splits = _splits(run)
    rows = rows_of(run)
    environment = Environment(
        loader=PackageLoader("pmm_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "seconds": format_seconds,
        "rate": format_rate,
        "number": lambda value: f"{value:,}",
    }
    errors = [error for record in run.stages for error in record.errors]
    return environment.get_template("template.html.j2").render(
        run=run,
        record=run.record,
        finished=bool(run.record.get("finished")),
        facts=[(name, _facts(run.record.get(name))) for name in ("machine", "cluster", "versions")],
        rows=rows,
        scores={row.stage: format_scores(row.mean_iou, run.held_out_split) for row in rows},
        understood=_understood(run),
        longest=max((row.seconds for row in rows), default=0.0) or 1.0,
        ladders=[(split, [e for e in run.evaluations if e.split == split]) for split in splits],
        class_tables=[class_table(run.evaluations, split) for split in splits],
        curves=[(curve, loss_chart(curve)) for curve in run.curves],
        measured={curve.stage: _measured(run, curve.stage) for curve in run.curves},
        workers={curve.stage: _workers(run, curve.stage) for curve in run.curves},
        cycles=cycles_of(run),
        tables=_tables(run),
        sweeps=sweeps_of(run),
        errors=errors[:_MOST_ERRORS],
        error_count=len(errors),
        error_groups=_group_errors(errors),
        pixel_labels=_pixel_labels(run),
        gallery=gallery,
        gains=gains,
        gallery_note=gallery_note,
    )


def class_table(evaluations: Sequence[Evaluation], split: str) -> ClassTable:
    """One split's evaluations side by side; classes that none could score are only named."""
    chosen = [e for e in evaluations if e.split == split]
    names = list(dict.fromkeys(name for e in chosen for name in e.class_iou))
    rows = [(name, tuple(e.class_iou.get(name) for e in chosen)) for name in names]
    return ClassTable(
        split=split,
        titles=tuple(e.title for e in chosen),
        rows=tuple(row for row in rows if any(value is not None for value in row[1])),
        means=tuple(e.mean_iou for e in chosen),
        excluded=tuple(dict.fromkeys(name for e in chosen for name in e.excluded)),
    )


def _understood(run: RunData) -> list[str]:
    """What the import understood of the data set, a line each."""
    summary = run.summary("import_data")
    return [str(line) for line in summary.details.get("understood", ())] if summary else []


def _group_errors(errors: Sequence[ErrorRow]) -> list[ErrorGroup]:
    """Errors by stage and kind, the largest group first."""
    first = {(e.stage, e.kind): e for e in reversed(errors)}
    counts = Counter((e.stage, e.kind) for e in errors)
    return [ErrorGroup(*key, count, first[key]) for key, count in counts.most_common()]


def _splits(run: RunData) -> list[str]:
    """The evaluated splits, the held-out one first."""
    found = dict.fromkeys(e.split for e in run.evaluations)
    return sorted(found, key=lambda split: split != run.held_out_split)


def _tables(run: RunData) -> list[dict[str, Any]]:
    """The paper's tables that were made of this run."""
    found = (summary.details.get("table") for summary in run.summaries)
    return sorted((t for t in found if isinstance(t, dict)), key=lambda table: table["number"])


def _measured(run: RunData, stage: str) -> list[tuple[str, float]]:
    """What a training measured beside its loss, 0..1."""
    names = {
        "mean_average_precision": "held-out mAP",
        "cam_miou": "held-out CAM mIoU",
        "validation_miou": "held-out mIoU",
        "underfitting_share": "images under limited loss, %",
    }
    summary = run.summary(stage)
    metrics = summary.metrics if summary else {}
    return [(title, metrics[name]) for name, title in names.items() if name in metrics]


def _workers(run: RunData, stage: str) -> str:
    """How many workers did which steps, where an elastic training changed their number."""
    summary = run.summary(stage)
    details = summary.details if summary else {}
    first, *later = details.get("workers_by_step") or [[0, 0]]
    if not later:
        return ""
    return f"{first[1]}, " + ", ".join(f"{count} from step {step + 1}" for step, count in later)


def _pixel_labels(run: RunData) -> list[tuple[str, str]]:
    """(stage, split) of every stage that read ground-truth masks."""
    return [
        (summary.stage, str(summary.details.get("split", "")))
        for summary in run.summaries
        if summary.pixel_labels_used
    ]


def _facts(values: Any) -> list[tuple[str, str]]:
    if not isinstance(values, dict):
        return []
    facts = []
    for key, value in values.items():
        if str(key).endswith("_bytes") and isinstance(value, int):
            key, value = str(key).removesuffix("_bytes"), f"{value / 1024**3:.1f} GiB"
        facts.append((str(key).replace("_", " "), str(value)))
    return facts


def _percent(value: float | None) -> str:
    """`43.0`, or a dash for none and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value * 100:.1f}"
