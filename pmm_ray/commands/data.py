"""`pmm data import`: any source -> a manifest and, where truth is polygons, masks."""

from __future__ import annotations

from collections.abc import Sequence

from pmm_ray.config import RunConfig
from pmm_ray.pipeline.run import AGAIN, Step, open_run
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.sources.importing import ImportReport
from pmm_ray.stages import import_data, rasterize_masks


def import_dataset(config: RunConfig, out: str, splits: Sequence[str]) -> ImportReport:
    """Import what `config.data` names into the folder `out`, without masks.

    Args:
        config: its section `data` counts.
        out: folder or uri.
        splits: in place of the configuration's two; the last one is the held-out one.

    Raises:
        CannotRunError: the data set cannot be read.
        ValueError: its classes make no label space.
    """
    return import_data.import_source(config.data, storage.absolute(out), config.seed, splits)


def draw_masks(config: RunConfig, out: str, address: str = "auto") -> int:
    """Make the masks that the imported manifest of `out` names, on Ray; resumes.

    Returns:
        The exit code, as of `run_recipe`; 0 at once if there are no masks to make.
    """
    place = storage.absolute(out)
    uri = storage.join(place, "manifest.parquet")
    if rasterize_masks.objects_fingerprint(uri) is None:
        return 0

    def body(progress: Progress) -> None:
        draw = Step("rasterize_masks", lambda run: rasterize_masks.stage(config.data, run.data))
        with open_run(place, config, [draw], progress, address, **AGAIN) as run:
            run.data = DataSet.open(uri)
            run.follow()
            for name, count in run["rasterize_masks"].finished().details["counts"].items():
                run.say(f"{name}: {count}")

    return guarded(body)
