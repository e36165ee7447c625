"""`pmm predict`: masks for a folder of unlabelled photographs, by the pipeline's own stage."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from pmm_ray.cam_pipeline import weights_hash
from pmm_ray.config import RunConfig, load_recipe, section_hash
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.accounting import close
from pmm_ray.runtime.core.errors import BudgetExceededError, CannotRunError, error_budget
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.session import Selection, Session
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.core.tables import read_errors

STAGE = "predict_masks"


def predict_folder(
    source: str,
    images: str | Path,
    out: str | Path,
    *,
    settings: Sequence[str] = (),
    address: str = "auto",
) -> int:
    """Mask every photograph of a folder; writes `OUT/masks/ID.png` and the masks table.

    Args:
        source: a run folder (its last segmenter is taken) or a segmenter's `model.pt`.
        images: folder of photographs, labelled or not.
        out: output folder; the same command goes on where it was interrupted.
        settings: `predict.key=value` overrides of the run's configuration.
        address: see `run_recipe`.

    Returns:
        The exit code, as of `run_recipe`.
    """
    place = storage.absolute(str(out))

    def body(progress: Progress) -> None:
        checkpoint, config = find_segmenter(source, settings)
        with Session(place, config, Selection((STAGE,)), progress, address) as session:
            session.hold()
            _predict(session, checkpoint, str(images))

    return guarded(body)


def find_segmenter(source: str, settings: Sequence[str]) -> tuple[str, RunConfig]:
    """(checkpoint uri, configuration) of a run folder's last segmenter, or of a model file.

    With `cycles.update: if_better` the last one may be found worse than the one before, whose masks
    it learnt from; then that is taken.

    Raises:
        CannotRunError: there is none.
    """
    source = storage.absolute(source)
    record = storage.join(source, "run.json")
    if not storage.exists(record):
        if not storage.exists(source) or not source.endswith(".pt"):
            raise CannotRunError(f"{source} is neither a run folder nor a segmenter's model.pt")
        return source, load_recipe(None, settings)
    stages = json.loads(storage.read_bytes(record))["stages"]
    # rounds of the run itself, not those of an ablation
    trained = [s for s in stages if re.fullmatch(r"train_segmenter-r\d+", s["stage"])]
    if not trained:
        raise CannotRunError(f"{source} has no trained segmenter yet: finish `pmm run` first")
    resolved = storage.join(source, "resolved.yaml")
    folder = _chosen(source, stages, trained)
    return storage.join(source, folder, "model.pt"), load_recipe(resolved, settings)


def _chosen(run_dir: str, stages: list[dict[str, str]], trained: list[dict[str, str]]) -> str:
    """The folder of the last segmenter; of the one before where `if_better` found that better."""
    decisions = [s for s in stages if re.fullmatch(r"choose_masks-r\d+", s["stage"])]
    if decisions and len(trained) > 1:
        last = decisions[-1]
        place = storage.join(run_dir, last["folder"])
        summary = StageFolder(place, last["stage"], last["hash"]).summary()
        about_last = last["stage"] == f"choose_masks-r{len(trained)}"
        if about_last and summary is not None and not summary.details["update"]:
            return trained[-2]["folder"]
    return trained[-1]["folder"]


def _predict(session: Session, checkpoint: str, images: str) -> None:
    from pmm_ray.labels import LabelSpace
    from pmm_ray.nets.checkpoints import load_model
    from pmm_ray.runtime.core.manifest import manifest_hash
    from pmm_ray.sources.folder import import_folder
    from pmm_ray.sources.understood import console
    from pmm_ray.stages import predict_masks

    config = session.config
    space = LabelSpace.from_json(load_model(checkpoint, "segmenter")[1]["label_space"])
    report = import_folder(
        images,
        session.run_dir,
        class_names=space.names[1:],
        read_labels=config.predict.use_image_labels,
        max_pixels=config.data.max_pixels,
    )
    budget = error_budget(config.errors.budget, report.total)
    if len(report.errors) > budget:
        raise BudgetExceededError("import", len(report.errors), budget, report.errors)
    session.progress.message(console(report))
    session.manifest_uri = report.manifest.uri
    index = index_file(report.manifest.uri)
    masks = storage.join(session.run_dir, "masks")
    stage_hash = section_hash(
        config.predict,
        weights_hash(checkpoint),
        manifest_hash(report.manifest.uri),
        predict_masks.CODE_VERSION,
    )
    folder = session.stage(
        STAGE,
        stage_hash,
        lambda folder: predict_masks.run(
            config.predict,
            session.context(),
            folder,
            images=index,
            checkpoint_uri=checkpoint,
            round_number=0,
            png_folder=masks,
        ),
        input_rows=len(index),
    )
    total = report.accounting.after(read_errors(folder.errors_uri))
    close(total, f"{masks}, {session.run_dir}/errors", session.progress.message)
