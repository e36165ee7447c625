"""`pmm masks`: pseudo-masks from a user's CAMs, by the pipeline's own mask stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pmm_ray.config import load_recipe, section_hash
from pmm_ray.labels import MAX_FOREGROUND
from pmm_ray.pipeline.run import AGAIN, Run, Step, open_run
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.accounting import close
from pmm_ray.runtime.core.errors import CannotRunError, require_budget
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.stage import Stage
from pmm_ray.runtime.core.tables import read_errors, read_table
from pmm_ray.runtime.rows.cams import Cams
from pmm_ray.runtime.rows.dataset import DataSet

if TYPE_CHECKING:
    from pmm_ray.sources.cam_detect import Detected

# says which settings the PNG files beside it were made with
_MARKER = ".stage"


def make_masks_of(
    images: str | Path,
    cams: str | Path,
    out: str | Path,
    *,
    labels_csv: str | Path | None = None,
    trust_pickle: bool = False,
    layout: str | None = None,
    key: str | None = None,
    first_class: int | None = None,
    background_channel: bool = False,
    normalize: str = "none",
    class_ids: str = "auto",
    settings: Sequence[str] = (),
    address: str = "auto",
) -> int:
    """CVS, CRF and PPMG on a folder of CAMs; writes `OUT/masks/ID.png` and the masks table.

    Args:
        images: folder of photographs; those without a CAM are left aside.
        cams: folder of CAMs, see `pmm_ray.sources.cam_layouts`.
        out: output folder; the same command goes on where it was interrupted.
        labels_csv: classes of each photograph, or names of the classes, see
            `pmm_ray.sources.cam_import`.
        trust_pickle: whether the user vouches for `.npy` files, which are pickles.
        layout, key, first_class, background_channel, normalize, class_ids: what the user says of
            the files, see `Reading`.
        settings: `masks.key=value` overrides of the defaults.
        address: see `run_recipe`.

    Returns:
        The exit code, as of `run_recipe`.
    """
    place = storage.absolute(str(out))

    from pmm_ray.sources.cam_detect import asked, detect, with_class_ids
    from pmm_ray.sources.cam_files import find_cams
    from pmm_ray.sources.cam_import import import_photographs
    from pmm_ray.sources.cam_layouts import UNREAD
    from pmm_ray.sources.cam_reader import CamReader
    from pmm_ray.sources.understood import console
    from pmm_ray.stages import make_masks

    def body(progress: Progress) -> None:
        config = load_recipe(None, settings)
        reading = asked(
            layout=layout,
            key=key,
            first_class=first_class,
            background_channel=background_channel,
            normalize=normalize,
            class_ids=class_ids,
        )
        masks = storage.join(place, "masks")
        max_pixels = config.data.max_pixels

        def make(run: Run) -> Stage:
            space = run.data.manifest.label_space
            known = detected.reading
            # as it was before there was anything to say
            said = () if known == UNREAD else (str(known),)
            maps = Cams(
                found.index.select(run.data.images.image_ids),
                section_hash(run.data.hash, found.fingerprint, *said),
                CamReader(space.num_foreground, trust_pickle, max_pixels, known),
            )
            stage = make_masks.stage(config.masks, maps, png_folder=masks)
            clear_other_masks(run, masks, stage)
            return stage

        with open_run(place, config, [Step("make_masks", make)], progress, address, **AGAIN) as run:
            listing = storage.join(place, "cam-files.parquet")
            found = find_cams(str(cams), listing, trust_pickle=trust_pickle, layout=reading.layout)
            detected = detect(found, CamReader(MAX_FOREGROUND, trust_pickle, max_pixels, reading))
            report = import_photographs(
                str(images),
                found,
                place,
                labels_csv=None if labels_csv is None else storage.absolute(str(labels_csv)),
                trust_pickle=trust_pickle,
                max_pixels=max_pixels,
                reading=reading,
            )
            require_budget("import", report.errors, config.errors.budget, report.total)
            run.say(console(report))
            run.data = DataSet(report.manifest)
            space = report.manifest.label_space
            detected = with_class_ids(detected, space, known_labels(report.manifest.uri, detected))
            run.say(detected.line)
            run.follow()
            run.session.write_record(finished=True)
            total = report.accounting.after(read_errors(run["make_masks"].errors_uri))
            close(total, f"{masks}, {place}/errors", run.say)

    return guarded(body)


def known_labels(manifest: str, detected: Detected) -> dict[str, list[int]]:
    """The image-level labels of the images that were looked into."""
    wanted = {peek.image_id for peek in detected.peeks}
    table = read_table(manifest, ["image_id", "labels"])
    ids, labels = (table.column(name).to_pylist() for name in ("image_id", "labels"))
    return {i: found for i, found in zip(ids, labels, strict=True) if i in wanted and found}


def clear_other_masks(run: Run, masks: str, stage: Stage) -> None:
    """PNG files of other settings go, so that the folder never mixes two kinds.

    Raises:
        CannotRunError: the folder holds files, and none says that they are ours.
    """
    marker, made_by = storage.join(masks, _MARKER), stage.hash.encode()
    ours = storage.exists(marker)
    if ours and storage.read_bytes(marker) == made_by:
        return
    if not ours and storage.list_entries(masks, recursive=True):
        raise CannotRunError(
            f"{masks} holds files that this command did not make, and it would overwrite them: "
            "choose another --out, or move them away"
        )
    storage.delete_folder(masks)
    storage.delete_folder(stage.folder(run.session.run_dir).uri)
    storage.write_bytes(marker, made_by)
