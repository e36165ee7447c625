"""`pmm data import` and `shapes`: a source -> a manifest and, where truth is polygons, masks."""

from __future__ import annotations

from collections.abc import Sequence

from pmm_ray.commands import command
from pmm_ray.config import RunConfig
from pmm_ray.pipeline.run import RETRY, Step, open_run
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.accounting import close
from pmm_ray.runtime.core.files import MANIFEST_FILE
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.tables import read_errors
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.sources.datasets.shapes import make_shapes
from pmm_ray.sources.importing.import_report import ImportReport
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
        out: folder or uri; the same command goes on with the masks where it was interrupted.
        splits: in place of the configuration's two; the last one is the held-out one.
        address: see `run_recipe`.
    """
    place = storage.absolute(out)
    report = import_data.import_source(config.data, place, config.seed, splits)
    show(report)
    faults = _draw_masks(config, place, address, progress)
    close(report.accounting, f"{report.manifest.uri}, errors/ beside it{faults}", say)


@command
def make_dataset(
    progress: Progress, out: str, *, images: int, classes: int, size: int, seed: int
) -> None:
    """Make the synthetic data set in the folder `out`; see `make_shapes`."""
    report = make_shapes(out, images=images, classes=classes, size=size, seed=seed)
    show(report)
    close(report.accounting, f"{report.manifest.uri}, errors/ beside it", say)


def show(report: ImportReport) -> None:
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
    draw = Step("rasterize_masks", lambda run: rasterize_masks.stage(config.data, run.data))
    with open_run(place, config, [draw], progress, address, **RETRY) as run:
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
