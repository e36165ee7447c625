"""`pmm masks`: pseudo-masks from CAMs that others made, by the pipeline's own mask stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pmm_ray.config import load_recipe, section_hash
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.accounting import close
from pmm_ray.runtime.core.errors import BudgetExceededError, error_budget
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.session import Selection, Session
from pmm_ray.runtime.core.tables import read_errors

STAGE = "make_masks"
# says which settings the PNG files beside it were made with
_MARKER = ".stage"


def make_masks_of(
    images: str | Path,
    cams: str | Path,
    out: str | Path,
    *,
    labels_csv: str | Path | None = None,
    trust_pickle: bool = False,
    settings: Sequence[str] = (),
    address: str = "auto",
) -> int:
    """CVS, CRF and PPMG on a folder of CAMs; writes `OUT/masks/ID.png` and the masks table.

    Args:
        images: folder of photographs; those without a CAM are left aside.
        cams: folder of CAMs, see `pmm_ray.sources.cam_files`.
        out: output folder; the same command goes on where it was interrupted.
        labels_csv: classes of each photograph, or names of the classes, see
            `pmm_ray.sources.cam_import`.
        trust_pickle: whether the user vouches for `.npy` files, which are pickles.
        settings: `masks.key=value` overrides of the defaults.
        address: see `run_recipe`.

    Returns:
        The exit code, as of `run_recipe`.
    """
    place = storage.absolute(str(out))

    def body(progress: Progress) -> None:
        config = load_recipe(None, settings)
        with Session(place, config, Selection((STAGE,)), progress, address) as session:
            session.hold()
            csv = None if labels_csv is None else storage.absolute(str(labels_csv))
            _make(session, str(images), str(cams), csv, trust_pickle)

    return guarded(body)


def _make(
    session: Session, images: str, cams: str, labels_csv: str | None, trust_pickle: bool
) -> None:
    from pmm_ray.runtime.core.manifest import manifest_hash
    from pmm_ray.sources.cam_files import CamReader, find_cams
    from pmm_ray.sources.cam_import import import_photographs
    from pmm_ray.sources.understood import console
    from pmm_ray.stages import make_masks

    config = session.config
    listing = storage.join(session.run_dir, "cam-files.parquet")
    found = find_cams(cams, listing, trust_pickle=trust_pickle)
    report = import_photographs(
        images,
        found,
        session.run_dir,
        labels_csv=labels_csv,
        trust_pickle=trust_pickle,
        max_pixels=config.data.max_pixels,
    )
    budget = error_budget(config.errors.budget, report.total)
    if len(report.errors) > budget:
        raise BudgetExceededError("import", len(report.errors), budget, report.errors)
    session.progress.message(console(report))
    session.manifest_uri = report.manifest.uri
    photographs = index_file(report.manifest.uri)
    reader = CamReader(
        report.manifest.label_space.num_foreground, trust_pickle, config.data.max_pixels
    )
    stage_hash = section_hash(
        config.masks,
        manifest_hash(report.manifest.uri),
        found.fingerprint,
        make_masks.CODE_VERSION,
    )
    masks = storage.join(session.run_dir, "masks")
    _clear_other_masks(session, masks, stage_hash)
    folder = session.stage(
        STAGE,
        stage_hash,
        lambda folder: make_masks.run(
            config.masks,
            session.context(),
            folder,
            cams=found.index.select(photographs.image_ids),
            images=photographs,
            read_cam=reader,
            png_folder=masks,
        ),
        input_rows=len(photographs),
    )
    session.write_record(finished=True)
    total = report.accounting.after(read_errors(folder.errors_uri))
    close(total, f"{masks}, {session.run_dir}/errors", session.progress.message)


def _clear_other_masks(session: Session, masks: str, stage_hash: str) -> None:
    """PNG files of other settings go, so that the folder never mixes two kinds."""
    marker = storage.join(masks, _MARKER)
    if storage.exists(marker) and storage.read_bytes(marker) == stage_hash.encode():
        return
    storage.delete_folder(masks)
    storage.delete_folder(storage.join(session.run_dir, f"{STAGE}-{stage_hash}"))
    storage.write_bytes(marker, stage_hash.encode())
