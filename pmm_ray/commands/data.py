"""`pmm data import` and `shapes`: a source -> a manifest and, where truth is polygons, masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from pmm_ray.commands import command
from pmm_ray.commands.masks import clear_other_masks
from pmm_ray.config import RunConfig
from pmm_ray.pipeline.run import Run, Step, open_command
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.accounting import close
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.files import IMPORT_MARKER, MANIFEST_FILE, TRUTH_MARKER
from pmm_ray.runtime.core.marker import held_in, read_marker
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.record import refuse_others_run
from pmm_ray.runtime.core.stage import Stage
from pmm_ray.runtime.core.tables import read_errors
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.sources.datasets.coco_files import MASKS
from pmm_ray.sources.datasets.shapes import make_shapes
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.sources.importing.results import SOURCE_WRITES, source_of_manifest
from pmm_ray.sources.importing.understood import console
from pmm_ray.stages import import_data, rasterize_masks


@command
def import_dataset(
    progress: Progress,
    config: RunConfig,
    out: str,
    splits: Sequence[str] = (),
    address: str = "auto",
) -> None:
    """Import what `config.data` names into the folder `out`, and draw its masks on Ray.

    Args:
        config: its sections `data` and `runtime` count.
        out: folder or uri; the same command goes on with the masks where it was interrupted, and
            another import of the same source overwrites what this one wrote.
        splits: in place of the configuration's two; the last one is the held-out one.
        address: see `run_recipe`.
    """
    place = storage.absolute(out)
    with _filling(place, config.data.source):
        report = import_data.import_source(config.data, place, config.seed, splits)
    show_report(report)
    faults = _draw_masks(config, place, address, progress)
    close(report.accounting, f"{report.manifest.uri}, errors/ beside it{faults}", say)


@command
def make_dataset(
    progress: Progress, out: str, *, images: int, classes: int, size: int, seed: int
) -> None:
    """Make the synthetic data set in the folder `out`; see `make_shapes`."""
    with _filling(storage.absolute(out), "shapes"):
        report = make_shapes(out, images=images, classes=classes, size=size, seed=seed)
    show_report(report)
    close(report.accounting, f"{report.manifest.uri}, errors/ beside it", say)


@contextlib.contextmanager
def _filling(place: str, source: str) -> Iterator[None]:
    """Import into a folder whose files we may overwrite: new ones, or of the same source.

    A marker says so until the manifest does.

    Raises:
        CannotRunError: it holds what the import may write, and none of ours; or it is the folder
            of another command.
    """
    refuse_others_run(place, [rasterize_masks.STAGE])
    writes = {MANIFEST_FILE, "errors", MASKS, *SOURCE_WRITES.get(source, ())}
    marker = storage.join(place, IMPORT_MARKER)
    known = source_of_manifest(storage.join(place, MANIFEST_FILE)) == source
    if not known and read_marker(place, IMPORT_MARKER, writes) is None:
        storage.write_bytes(marker, source.encode())
    try:
        yield
    finally:
        # a store that fails right now must not hide why the import ends
        with contextlib.suppress(OSError, CannotRunError):
            held = held_in(place, writes)
            if MANIFEST_FILE in held or not held:
                storage.delete_file(marker)


def show_report(report: ImportReport) -> None:
    """Print what an import counted and understood."""
    for name, count in report.counts.items():
        print(f"{name}: {count}")
    print(console(report), flush=True)


def say(text: str) -> None:
    """Print a line that may quote the names of files."""
    print(storage.printable(text), flush=True)


def _draw_masks(config: RunConfig, place: str, address: str, progress: Progress) -> str:
    """Make the masks that the imported manifest of `place` names; nothing where it names none.

    Returns:
        How many could not be made, with the first reason and the place of all; empty if none.
    """
    uri = storage.join(place, MANIFEST_FILE)
    if rasterize_masks.objects_fingerprint(uri) is None:
        return ""

    def make(run: Run) -> Stage:
        stage = rasterize_masks.stage(config.data, run.data)
        folder = stage.folder(run.session.run_dir)
        if clear_other_masks(storage.join(place, MASKS), folder, marker=TRUTH_MARKER):
            storage.delete_folder(folder.uri)
        return stage

    draw = Step("rasterize_masks", make)
    with open_command(place, config, [draw], progress, address) as run:
        run.data = DataSet.open(uri)
        run.follow()
        folder = run["rasterize_masks"]
        for name, count in folder.finished().details["counts"].items():
            run.say(f"{name}: {count}")
    errors = read_errors(folder.errors_uri)
    if not errors:
        return ""
    first = f"{errors[0].image_id}: {errors[0].message}"
    return f"; {len(errors)} masks could not be made ({first}), see {folder.errors_uri}"
