"""`pmm doctor --data`: what a run would make of a data set, without running or keeping anything."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pmm_ray.commands import command
from pmm_ray.commands.data import say, show_report
from pmm_ray.config import DataConfig, load_recipe
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.accounting import account, close
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow, require_budget
from pmm_ray.runtime.core.files import MANIFEST_FILE
from pmm_ray.runtime.core.manifest import LABEL_SPACE_KEY, Manifest, check_labels, open_manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.recipes import read_recipe
from pmm_ray.sources.datasets.coco import has_annotations
from pmm_ray.sources.datasets.parquet_files import hold_photographs
from pmm_ray.sources.importing.import_report import ImportReport, counted
from pmm_ray.sources.importing.photographs import LABEL_FILES, places_in
from pmm_ray.sources.reading.names import has_ending
from pmm_ray.stages.import_data import import_source

# what tells the layout of a folder, the surest first; else it is `folder`
_LAYOUTS = (
    ("voc12", ("ImageSets", "VOC2012/ImageSets", "VOCdevkit/VOC2012/ImageSets")),
    ("coco14", ("annotations/instances_train2014.json", "annotations/instances_val2014.json")),
)


@command
def check_data(progress: Progress, place: str, settings: Sequence[str] = ()) -> None:
    """Import a data set into a folder that is deleted, and print all that an import finds out.

    Args:
        place: a recipe (YAML), whose section `data` counts; or a data set, whose source is told
            by what is there, or named by `data.source` in `settings`.
        settings: `section.key=value`, see `load_recipe`.

    Returns:
        The exit code: 0 if a run could use it, 3 if more images failed than `errors.budget`
        allows, else 1.
    """
    is_recipe = has_ending(place, (".yaml", ".yml"))
    config = read_recipe(place, settings) if is_recipe else load_recipe(None, settings)
    data = config.data
    if not is_recipe:
        changes: dict[str, Any] = {"root": place}
        if "source" not in data.model_fields_set:
            changes["source"] = source_of(place)
        data = data.model_copy(update=changes)
    print(f"source: {data.source}, {data.root or 'no root'}")
    if data.source == "manifest":
        if not is_recipe and not has_ending(place, ".parquet"):
            data = data.model_copy(update={"root": storage.join(place, MANIFEST_FILE)})
        report = _read_manifest(data)
        total = report.rows
    else:
        with tempfile.TemporaryDirectory(prefix="pmm-check-") as scratch:
            report = import_source(data, scratch, config.seed)
        total = report.total
    show_report(report)
    for row in report.errors:
        file = f" ({row.uri})" if row.uri else ""
        say(f"{row.kind}: {row.image_id}: {row.message}{file}")
    close(report.accounting, "nothing is kept of this check", say)
    require_budget("import", report.errors, config.errors.budget, total)
    _require_training_images(report.manifest, data)
    if not any(counts.get(data.train_split) for counts in report.classes.values()):
        raise CannotRunError(
            f"no image of split {data.train_split} has a label: there is nothing to learn"
        )


def _read_manifest(data: DataConfig) -> ImportReport:
    """What a manifest holds, as an import says it; its rows with wrong labels are errors."""
    manifest = open_manifest(data.root)
    rows: list[tuple[str, Sequence[int]]] = []
    errors: list[ErrorRow] = []
    columns = ["image_id", "uri", "labels", "split"]
    for row in tables.read_table(manifest.uri, columns).to_pylist():
        try:
            rows.append((row["split"], check_labels(row["labels"], manifest.label_space)))
        except ValueError as error:
            errors.append(ErrorRow(row["image_id"], data.source, "label", str(error), row["uri"]))
    counts, classes = counted(manifest, rows)
    accounting = account("images", found=manifest.num_rows, made=len(rows), errors=errors)
    asked = (data.train_split, data.held_out_split)
    return ImportReport(manifest, tuple(errors), counts, accounting, classes, asked=asked)


def source_of(place: str) -> str:
    """The `data.source` that fits what is in a folder, or a file.

    Raises:
        CannotRunError: nothing is there.
    """
    place = storage.absolute(place)
    if not storage.exists(place):
        raise CannotRunError(f"nothing is at {place}")
    if has_ending(place, (".json", ".json.gz")):
        return "coco"
    if has_ending(place, ".parquet"):
        return "manifest" if _is_manifest(place) else "parquet"
    if _is_manifest(storage.join(place, MANIFEST_FILE)):
        return "manifest"
    if storage.exists(storage.join(place, "labelmap.txt")):
        return "folder"  # CVAT's masks have VOC's folders
    for source, names in _LAYOUTS:
        if any(storage.exists(storage.join(place, name)) for name in names):
            return source
    if has_annotations(place):
        return "coco"
    if places_in(place, LABEL_FILES):
        return "folder"
    return "parquet" if hold_photographs(place) else "folder"


def _is_manifest(uri: str) -> bool:
    """Whether a Parquet file says that it is a manifest of ours; False of one that is damaged."""
    try:
        filesystem, path = storage.resolve(uri)
        metadata = pq.read_schema(path, filesystem=filesystem).metadata
    except (OSError, pa.ArrowInvalid):
        return False
    return LABEL_SPACE_KEY.encode() in (metadata or {})


def _require_training_images(manifest: Manifest, data: DataConfig) -> None:
    if not manifest.splits.get(data.train_split):
        known = ", ".join(manifest.splits)
        raise CannotRunError(
            f"no image is of the training split {data.train_split!r}, there are {known}: set "
            "data.train_split"
        )
