"""`pmm export`: the masks of a finished run in formats that other programs read.

A format is a module of this package, imported when it is asked for. Its function
`write(masks: RunMasks, out: Out, progress: Progress) -> Written` writes files at the places that
`out` gives; `progress` shows the images done. It writes a file of several images only where one of
them could be written: else a good earlier export would be overwritten with nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pmm_ray.commands import command
from pmm_ray.report.outcome import why_absent
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.accounting import account, close
from pmm_ray.runtime.core.progress import Progress

if TYPE_CHECKING:
    from pmm_ray.commands.export.source import RunMasks, Written


@command
def export_run(
    progress: Progress, run_dir: str, out: str, name: str, stage: str | None = None
) -> None:
    """Write a run's masks in another format; files of an earlier export are overwritten or deleted.

    Args:
        run_dir: uri of a finished run.
        out: folder or uri to write below; it holds nothing, or what an export wrote.
        name: of the format, a module of this package.
        stage: the stage whose masks are taken, for example `make_masks`; None: for each split the
            last stage that made some.
    """
    from pmm_ray.commands.export.out import Out
    from pmm_ray.commands.export.source import open_masks

    module = importlib.import_module(f"{__name__}.{name}")
    masks, place = open_masks(run_dir, stage), Out(storage.absolute(out))
    try:
        written = module.write(masks, place, progress)
        if written.errors:
            errors = [row.as_dict() for row in written.errors]
            tables.write_rows(place.place("errors", "part-export.parquet"), errors, tables.ERRORS)
    except BaseException:
        place.keep_names()
        raise
    place.close(written, progress)
    _account(masks, written, place.uri, progress)


def _account(masks: RunMasks, written: Written, place: str, progress: Progress) -> None:
    """Say what became of every image of the run."""
    passed = {image_id for ids in written.left_out.values() for image_id in ids}
    known = written.image_ids | {row.image_id for row in written.errors} | passed
    errors, left_out = why_absent(masks.run, masks.manifest, known, "no mask to export")
    total = account(
        "images",
        found=masks.manifest.num_rows,
        made=len(written.image_ids),
        errors=[*written.errors, *errors],
        left_out=left_out | written.left_out,
    )
    rest = f"{place}/errors" if written.errors else f"{masks.run.run_dir}/*/errors"
    close(total, f"{place}, {rest}", progress.message)
