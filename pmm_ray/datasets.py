"""`pmm data import`: any source -> a manifest and, where truth is polygons, drawn masks."""

from __future__ import annotations

from collections.abc import Sequence

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.session import Selection, Session
from pmm_ray.sources.importing import ImportReport
from pmm_ray.stages import import_data, rasterize_masks


def import_dataset(config: RunConfig, out: str, splits: Sequence[str]) -> ImportReport:
    """Import what `config.data` names into the folder `out`; masks are not drawn yet.

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
    """Draw the masks that the imported manifest of `out` names, on Ray; resumes.

    Returns:
        The exit code, as of `run_recipe`; 0 at once where nothing is to be drawn.
    """
    place = storage.absolute(out)
    uri = storage.join(place, "manifest.parquet")
    if rasterize_masks.objects_fingerprint(uri) is None:
        return 0

    def body(progress: Progress) -> None:
        plan = Selection((rasterize_masks.STAGE,))
        with Session(place, config, plan, progress, address) as session:
            session.hold()
            session.manifest_uri = uri
            folder = session.stage(
                rasterize_masks.STAGE,
                rasterize_masks.stage_hash(config.data, uri),
                lambda folder: rasterize_masks.run(config.data, session.context(), folder),
                input_rows=len(rasterize_masks.images_to_draw(uri)),
            )
            summary = folder.summary()
            assert summary is not None
            for name, count in summary.details["counts"].items():
                progress.message(f"{name}: {count}")

    return guarded(body)
