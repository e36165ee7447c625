"""`pmm masks`: pseudo-masks from a user's CAMs, by the pipeline's own mask stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmm_ray.commands import command
from pmm_ray.config import load_recipe, refuse_unread, section_hash
from pmm_ray.labels import MAX_FOREGROUND, LabelSpace
from pmm_ray.pipeline.data import take_import
from pmm_ray.pipeline.run import Run, Step, open_command
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.accounting import close
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.files import MANIFEST_FILE, MASKS_MARKER, RECORD_FILE
from pmm_ray.runtime.core.index import read_index
from pmm_ray.runtime.core.marker import read_marker
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.core.tables import read_errors, read_rows, read_table
from pmm_ray.runtime.rows.cams import Cams
from pmm_ray.runtime.rows.masks import mask_parameters
from pmm_ray.sources.cams.said import Said

if TYPE_CHECKING:
    from pmm_ray.sources.cams.cam_detect import Detected
    from pmm_ray.sources.cams.cam_files import CamFolder
    from pmm_ray.sources.importing.import_report import ImportReport


@command
def make_masks_of(
    progress: Progress,
    images: str | Path,
    cams: str | Path,
    out: str | Path,
    *,
    labels_csv: str | Path | None = None,
    said: Said | None = None,
    settings: Sequence[str] = (),
    address: str = "auto",
) -> None:
    """CVS, CRF and PPMG on a folder of CAMs; writes `OUT/masks/ID.png` and the masks table.

    Args:
        images: folder of photographs; those without a CAM are left aside.
        cams: folder of CAMs, see `pmm_ray.sources.cams.cam_layouts`.
        out: output folder; the same command goes on where it was interrupted.
        labels_csv: classes of each photograph, or names of the classes, see
            `pmm_ray.sources.cams.cam_import`.
        said: what the user says of the files.
        settings: `masks.key=value` overrides of the defaults.
        address: see `run_recipe`.
    """
    from pmm_ray.sources.cams.cam_detect import asked
    from pmm_ray.sources.cams.cam_files import find_cams
    from pmm_ray.stages import make_masks

    place, said = storage.absolute(str(out)), said or Said()
    config = load_recipe(None, settings)
    refuse_unread(settings, "pmm masks", ("masks", "data.max_pixels", "errors", "runtime"))
    # before anything is written
    asked(said)
    mask_parameters(config.masks)
    masks = masks_folder(place)

    def make(run: Run) -> Stage:
        maps = cams_of(run, found, detected, said)
        return make_masks.stage(config.masks, maps, png_folder=masks)

    steps = [mask_step("make_masks", masks, make)]
    with open_command(place, config, steps, progress, address) as run:
        listing = storage.join(place, "cam-files.parquet")
        found = find_cams(
            str(cams), listing, trust_pickle=said.trust_pickle, layout=said.layout or ""
        )
        csv = None if labels_csv is None else storage.absolute(str(labels_csv))
        detected = detect_cams(run, found, said)
        report, detected = import_cams(run, found, detected, str(images), said, labels_csv=csv)
        run.follow()
        total = report.accounting.after(read_errors(run["make_masks"].errors_uri))
        close(total, f"{masks}, {place}/errors", run.say)


def detect_cams(run: Run, found: CamFolder, said: Said) -> Detected:
    """What a folder of CAMs is. Raises CannotRunError, see `detect`."""
    from pmm_ray.sources.cams.cam_detect import asked, detect
    from pmm_ray.sources.cams.cam_reader import CamReader

    max_pixels = run.config.data.max_pixels
    reader = CamReader(range(MAX_FOREGROUND + 1), said.trust_pickle, max_pixels, asked(said))
    return detect(found, reader, as_it_is=said.normalize == "none")


def import_cams(
    run: Run,
    found: CamFolder,
    detected: Detected,
    images: str,
    said: Said,
    *,
    labels_csv: str | None = None,
    space: LabelSpace | None = None,
) -> tuple[ImportReport, Detected]:
    """Import the photographs that have a CAM and decide how its classes are numbered.

    Args:
        images: folder of photographs.
        labels_csv, space: see `import_photographs`.

    Raises:
        CannotRunError, BudgetExceededError: see `import_photographs` and `with_class_ids`.
    """
    from pmm_ray.sources.cams.cam_detect import with_class_ids

    report = import_with(
        run, found, images, said, labels_csv=labels_csv, reading=detected.reading, space=space
    )
    wanted = {peek.image_id for peek in detected.peeks}
    table = read_table(report.manifest.uri, ["image_id", "labels"])
    ids, labels = (table.column(name).to_pylist() for name in ("image_id", "labels"))
    known = {i: of for i, of in zip(ids, labels, strict=True) if i in wanted and of}
    detected = with_class_ids(detected, report.manifest.label_space, known)
    run.say(detected.line)
    return report, detected


def import_with(
    run: Run, found: CamFolder, images: str, said: Said, **options: Any
) -> ImportReport:
    """Import the photographs that have a file, and say what was understood.

    Args:
        options: of `import_photographs`.

    Raises:
        CannotRunError, BudgetExceededError: see `import_photographs`.
    """
    from pmm_ray.sources.cams.cam_import import import_photographs

    report = import_photographs(
        images,
        found,
        run.session.run_dir,
        trust_pickle=said.trust_pickle,
        max_pixels=run.config.data.max_pixels,
        **options,
    )
    take_import(run, report)
    return report


def cams_of(run: Run, found: CamFolder, detected: Detected, said: Said) -> Cams:
    """The CAMs of the imported photographs, read as was detected."""
    from pmm_ray.sources.cams.cam_layouts import UNREAD
    from pmm_ray.sources.cams.cam_reader import CamReader

    space, reading = run.data.manifest.label_space, detected.reading
    # without a reading the hash is that of older versions
    known = () if reading == UNREAD else (str(reading),)
    return Cams(
        found.index.select(run.data.images.ids),
        section_hash(run.data.hash, found.fingerprint, *known),
        CamReader(space.dataset_ids, said.trust_pickle, run.config.data.max_pixels, reading),
    )


def mask_step(
    name: str, masks: str, make: Callable[[Run], Stage], told: Sequence[str] = ()
) -> Step:
    """A step whose stage also writes files: the folder has its masks, all of them and no others.

    Args:
        name: of the stage.
        masks: the folder.
        make: see `Step`; its stage writes the masks that it computes.
        told: files that say something of the masks, and go with them.
    """

    def late(run: Run) -> Stage:
        stage = make(run)

        def body(context: RunContext, folder: StageFolder) -> Summary:
            # a Ray that cannot be reached costs nobody a mask
            _ = context.cluster
            clear_other_masks(masks, folder, told)
            return stage.run(context, folder)

        return replace(stage, run=body)

    def complete(run: Run) -> None:
        clear_other_masks(masks, run[name], told)
        _write_missing(masks, run[name])

    return Step(name, late, after=complete)


def masks_folder(place: str) -> str:
    """The folder below OUT that a command fills with masks, before anything is written.

    Raises:
        CannotRunError: it, or the manifest in OUT, is of another command; see `read_marker`.
    """
    manifest, record = storage.join(place, MANIFEST_FILE), storage.join(place, RECORD_FILE)
    if storage.exists(manifest) and not storage.exists(record):
        raise CannotRunError(
            f"{manifest} is of another command and would be overwritten: choose another --out"
        )
    masks = storage.join(place, "masks")
    read_marker(masks, MASKS_MARKER)
    return masks


def clear_other_masks(
    masks: str, stage: StageFolder, told: Sequence[str] = (), *, marker: str = MASKS_MARKER
) -> bool:
    """Delete masks of other settings and what is told of them: the folder never mixes two kinds.

    Args:
        told: files that go with the masks.
        marker: of the folder.

    Returns:
        Whether the folder's were of others, or of none.

    Raises:
        CannotRunError: see `read_marker`.
    """
    made_by = stage.hash.encode()
    if read_marker(masks, marker) == made_by:
        return False
    for uri in told:
        storage.delete_file(uri)
    storage.delete_folder(masks)
    storage.write_bytes(storage.join(masks, marker), made_by)
    return True


def _write_missing(masks: str, stage: StageFolder) -> None:
    """Write the masks that other settings or a user deleted, from the stage's table."""
    there = set(storage.list_names(masks))
    index = read_index(stage.uri)
    lacking = index.select([i for i in index.image_ids if f"{i}.png" not in there])
    for uri, rows in zip(lacking.parts, lacking.rows_of_parts(), strict=True):
        for row in read_rows(uri, rows.tolist()) if len(rows) else []:
            storage.write_bytes(storage.join(masks, f"{row['image_id']}.png"), row["mask_png"])
