"""`pmm export`: the masks of a finished run in formats that other programs read.

A format is a module of this package with a function
`write(masks: RunMasks, out: str, progress: Progress) -> None`, imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import Literal

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress

Format = Literal["voc", "coco", "mmseg"]


def export_run(run_dir: str, out: str, name: Format, stage: str | None = None) -> int:
    """Write a run's masks in another format; the same command again overwrites what it wrote.

    Args:
        run_dir: uri of a finished run.
        out: folder or uri to write below.
        name: of the format.
        stage: the stage whose masks are taken, for example `make_masks`; None: for each split the
            last stage that made some.

    Returns:
        The exit code: 0 done, 1 cannot run, 130 interrupted.
    """

    def body(progress: Progress) -> None:
        from pmm_ray.commands.export.source import open_masks

        module = importlib.import_module(f"{__name__}.{name}")
        module.write(open_masks(run_dir, stage), storage.absolute(out), progress)

    return guarded(body)
