"""The outside world -> a manifest."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pmm_ray.config import DataConfig, RunConfig
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError, require_budget
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.sources.datasets.coco14 import import_coco14
from pmm_ray.sources.datasets.coco_files import MASKS
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.datasets.parquet import import_parquet
from pmm_ray.sources.datasets.raster import require_pycocotools
from pmm_ray.sources.datasets.shapes import make_shapes
from pmm_ray.sources.datasets.voc12 import import_voc12
from pmm_ray.sources.importing.contents import contents, other_contents
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.sources.importing.understood import console, understood
from pmm_ray.sources.reading.noted import noted, version

STAGE = "import_data"
CODE_VERSION = 1
_VERSIONS = {"voc12": 2, "folder": 2, "coco": 2, "parquet": 2}
"""Of sources whose reader has changed."""
# of a bucket: a request each, at the start of a run
_MOST_ASKED = 100
_LABELS_FROM = {
    "voc12": ("auto", "cls_labels", "xml", "masks", "lists"),
    "coco14": ("auto", "annotations", "lists"),
    "folder": ("auto", "folders"),
}
"""What `data.labels_from` may be; of other sources `auto` alone."""
_READ_BY = {
    "label_column": ("folder", "parquet"),
    "lists": ("voc12", "coco14"),
    "ground_truth": ("voc12", "coco14", "folder", "coco"),
    "overlap": ("coco14", "coco"),
    "crowd": ("coco14", "coco"),
    "trust_pickle": ("voc12",),
}
"""Keys of `data` that not every source reads."""


def import_source(
    data: DataConfig, out: str, seed: int, splits: Sequence[str] = ()
) -> ImportReport:
    """Run the importer that `data.source` names; writes `out/manifest.parquet`.

    Args:
        data: the section.
        out: folder or uri.
        seed: of the synthetic data set.
        splits: default: the training and the held-out split of `data`; the last is held out.

    Raises:
        CannotRunError: `data.root` is missing, or a key is for another source.
    """
    splits = splits or [data.train_split, data.held_out_split]
    return replace(_import(data, out, seed, splits), asked=tuple(splits))


def _import(data: DataConfig, out: str, seed: int, splits: Sequence[str]) -> ImportReport:
    known = _LABELS_FROM.get(data.source, ("auto",))
    labels_from: Any = data.labels_from
    if labels_from not in known:
        raise CannotRunError(f"data.labels_from for {data.source} is one of {', '.join(known)}")
    _refuse_unread(data)
    column = data.label_column
    if column and labels_from != "auto":
        raise CannotRunError(
            "data.label_column and data.labels_from: folders contradict each other"
        )
    if data.source == "shapes":
        if data.root and "source" not in data.model_fields_set:
            raise CannotRunError(
                f"data.root is {data.root}, and data.source is missing: set it to what is there, "
                "such as folder, voc12 or coco"
            )
        report = make_shapes(
            out, images=data.images, size=data.size, classes=data.classes, seed=seed
        )
        unread = f"data.root {data.root} is not read: data.source is shapes"
        return replace(report, notes=(unread,)) if data.root else report
    if not data.root:
        raise CannotRunError(f"data.source = {data.source} needs --set data.root=FOLDER")
    if data.source == "voc12":
        return import_voc12(
            data.root,
            out,
            splits=splits,
            labels_from=labels_from,
            trust_pickle=data.trust_pickle,
            lists=data.lists or None,
            ground_truth=data.ground_truth == "all",
            max_pixels=data.max_pixels,
        )
    if data.source == "folder":
        return import_folder(
            data.root,
            out,
            labels_from=labels_from,
            label_column=column,
            ground_truth=data.ground_truth == "all",
            max_pixels=data.max_pixels,
        )
    if data.source == "parquet":
        return import_parquet(data.root, out, label_column=column, max_pixels=data.max_pixels)
    truth_splits = {"all": splits, "held_out": splits[-1:], "none": []}[data.ground_truth]
    if truth_splits:
        require_pycocotools()  # before the minutes that reading the annotations takes
    if data.source == "coco14":
        return import_coco14(
            data.root,
            out,
            splits=splits,
            truth_splits=truth_splits,
            labels_from=labels_from,
            lists=data.lists or None,
            max_pixels=data.max_pixels,
        )
    return import_coco(
        data.root, out, splits=splits, truth_splits=truth_splits, max_pixels=data.max_pixels
    )


def _refuse_unread(data: DataConfig) -> None:
    """Refuse a key that the source would pass over: what it asks for would not happen."""
    source = data.source
    for key, sources in _READ_BY.items():
        if source not in sources and getattr(data, key) != DataConfig.model_fields[key].default:
            raise CannotRunError(
                f"data.{key} is for {', '.join(sources)}: data.source is {source}, change either"
            )
    if data.ground_truth == "held_out" and source in ("voc12", "folder"):
        raise CannotRunError(f"data.ground_truth of {source} is all or none")


def run(config: RunConfig, context: RunContext, folder: StageFolder) -> Summary:
    """Import the data set into the stage's folder.

    Raises:
        BudgetExceededError: too many images could not be used.
    """
    data, progress = config.data, context.progress
    started = time.monotonic()
    with noted() as read:
        report = import_source(data, folder.uri, config.seed)
    seconds = time.monotonic() - started
    progress.message(f"{STAGE}: {report.rows} images, {len(report.errors)} errors")
    progress.message(console(report))
    require_budget(STAGE, report.errors, config.errors.budget, report.total)
    labels_from = tables.table_metadata(report.manifest.uri).get("pmm.labels_from", data.source)
    if labels_from == "masks":
        progress.message(f"{STAGE}: pixel labels used (image-level labels read off the masks)")
    return Summary(
        stage=folder.stage,
        hash=folder.hash,
        images=report.rows,
        errors=len(report.errors),
        images_per_second=round(report.total / max(seconds, 1e-9), 1),
        details={
            "counts": report.counts,
            "labels_from": labels_from,
            "understood": understood(report),
            "accounting": report.accounting.as_dict(),
            "contents": _contents(data, read, report),
            "read": _versions(read),
        },
        pixel_labels_used=labels_from == "masks",
    )


def _versions(read: Iterable[str]) -> dict[str, list[int | None] | str | None]:
    """See `version`; of all files of this machine's disks, and the first ones of a bucket."""
    remote = filter(storage.is_remote, read)
    local = itertools.filterfalse(storage.is_remote, read)
    return {uri: version(uri) for uri in (*local, *itertools.islice(remote, _MOST_ASKED))}


def _contents(
    data: DataConfig, read: Iterable[str], report: ImportReport
) -> dict[str, list[int | None]]:
    """See `contents`; of the sources that have no list of all their photographs."""
    if data.source not in ("folder", "parquet"):
        return {}
    manifest = report.manifest
    photographs = tables.read_table(manifest.uri, ["uri"])["uri"].to_pylist()
    uris = read if data.source == "parquet" else map(manifest.locate, photographs)
    return contents(uris, storage.absolute(data.root))


def changes_since(summary: Summary) -> list[str]:
    """A line for each folder in which there are more or fewer photographs than at the import."""
    return [
        f"{STAGE}: there is more or less in {folder} than at the import: `--fresh --only {STAGE}` "
        "reads it again, and the next run computes what follows"
        for folder in other_contents(summary.details.get("contents", {}))
    ]


def stage(config: RunConfig) -> Stage:
    """The import of the data set that a recipe names."""
    version = _VERSIONS.get(config.data.source, CODE_VERSION)
    identity = (config.data, config.seed, version)
    # `rasterize_masks` writes into it; its masks are those of the same annotations
    return Stage(STAGE, identity, partial(run, config), keeps=MASKS, current=_as_it_was)


def _as_it_was(summary: Summary) -> bool:
    """Whether the labels, lists and annotations that an import read are those of today, and
    those that it looked for are still not there.

    Those that are gone, or in a store that does not answer, cannot be read again.
    """

    def same(uri: str, before: list[int | None] | str | None) -> bool:
        try:
            now = version(uri)
        except (OSError, MayPassError):
            return True
        return now in (None, before)

    return all(same(uri, before) for uri, before in summary.details.get("read", {}).items())
