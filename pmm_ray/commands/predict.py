"""`pmm predict`: masks for a folder of unlabelled photographs, by the pipeline's own stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pmm_ray.commands import command
from pmm_ray.commands.masks import mask_step, masks_folder
from pmm_ray.config import RunConfig, load_recipe, refuse_unread
from pmm_ray.pipeline.data import pin_precision, pinned, take_import
from pmm_ray.pipeline.run import Run, Step, open_command
from pmm_ray.report.run_data import load_run
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.accounting import close
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.files import RECORD_FILE, RESOLVED_FILE
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.recipes import read_recipe
from pmm_ray.runtime.core.stage import Stage
from pmm_ray.runtime.core.tables import read_errors
from pmm_ray.sources.importing.import_report import ImportReport


@command
def predict_folder(
    progress: Progress,
    source: str,
    images: str | Path,
    out: str | Path,
    *,
    settings: Sequence[str] = (),
    address: str = "auto",
) -> None:
    """Mask every photograph of a folder; writes `OUT/masks/ID.png` and the masks table.

    Args:
        source: a run folder (its last segmenter is taken) or a segmenter's `model.pt`.
        images: folder of photographs, labelled or not.
        out: output folder; the same command goes on where it was interrupted.
        settings: `predict.key=value` overrides of the run's configuration.
        address: see `run_recipe`.

    Raises:
        CannotRunError: `out` is another command's, or holds files that we did not make; or see
            `find_segmenter`.
    """
    place = storage.absolute(str(out))
    model, config = find_segmenter(source, settings)
    refuse_unread(settings, "pmm predict", ("predict", "data.max_pixels", "errors", "runtime"))
    masks = masks_folder(place)
    with open_command(place, config, [_predict(model, masks)], progress, address) as run:
        report = _import(run, model, str(images))
        pin_precision(run, pinned(run))
        run.follow()
        total = report.accounting.after(read_errors(run["predict_masks"].errors_uri))
        close(total, f"{masks}, {place}/errors", run.say)


def find_segmenter(source: str, settings: Sequence[str]) -> tuple[str, RunConfig]:
    """(checkpoint uri, configuration) of a run folder's last segmenter, or of a model file.

    What the run's configuration says of its machines is left out.

    Raises:
        CannotRunError: there is none.
    """
    source = storage.absolute(source)
    if storage.exists(storage.join(source, RECORD_FILE)):
        segmenter = load_run(source, with_curves=False).final_segmenter
        if segmenter is None:
            raise CannotRunError(f"{source} has no trained segmenter yet: finish `pmm run` first")
        resolved = storage.join(source, RESOLVED_FILE)
        # its section `runtime` is of the machines that the run was made on
        config = read_recipe(resolved, settings, without="runtime")
        return segmenter.folder.path("model.pt"), config
    if not storage.exists(source) or not source.endswith(".pt"):
        raise CannotRunError(f"{source} is neither a run folder nor a segmenter's model.pt")
    return source, load_recipe(None, settings)


def _import(run: Run, model: str, images: str) -> ImportReport:
    from pmm_ray.labels import LabelSpace
    from pmm_ray.nets.checkpoints import load_model
    from pmm_ray.sources.datasets.folder import import_folder

    config = run.config
    space = LabelSpace.from_json(load_model(model, "segmenter")[1]["label_space"])
    report = import_folder(
        images,
        run.session.run_dir,
        class_names=space.names[1:],
        labels_from="auto" if config.predict.use_image_labels else "none",
        ground_truth=False,
        max_pixels=config.data.max_pixels,
    )
    take_import(run, report)
    return report


def _predict(model: str, masks: str) -> Step:
    def make(run: Run) -> Stage:
        from pmm_ray.nets.weight_files import file_identity
        from pmm_ray.stages import predict_masks

        segmenter = predict_masks.Model(model, file_identity(model))
        return predict_masks.stage(
            run.config.predict, run.data, segmenter, run.data.images, png_folder=masks
        )

    return mask_step("predict_masks", masks, make)
