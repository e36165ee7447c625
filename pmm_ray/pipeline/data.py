"""The first steps: a data set -> a manifest, and the checks that its images allow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from pmm_ray.config import InferenceConfig, RunConfig
from pmm_ray.pipeline.run import Run, Step
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, require_budget
from pmm_ray.runtime.core.files import MANIFEST_FILE, RESOLVED_FILE, SUMMARY_FILE
from pmm_ray.runtime.core.selection import base_name
from pmm_ray.runtime.core.stage import Stage
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.sources.importing.understood import console

SomeInference = TypeVar("SomeInference", bound=InferenceConfig)


def data_steps(config: RunConfig, needs_truth: str = "") -> list[Step]:
    """(i) A data set -> a manifest, and masks where the ground truth is objects.

    Args:
        needs_truth: what else compares with ground truth, beside what the recipe asks for.
    """
    drawn = config.data.source in ("coco14", "coco") and config.data.ground_truth != "none"
    imported = Step("import_data", _import_data, after=partial(_open_data, needs_truth=needs_truth))
    return [imported, *([Step("rasterize_masks", _rasterize, after=_take_truth)] if drawn else [])]


def _import_data(run: Run) -> Stage | None:
    from pmm_ray.stages import import_data

    return None if run.config.data.source == "manifest" else import_data.stage(run.config)


def _open_data(run: Run, needs_truth: str) -> None:
    from pmm_ray.stages.import_data import changes_since

    data = run.config.data
    if data.source == "manifest" and not data.root:
        raise CannotRunError("data.source = manifest needs --set data.root=FILE.parquet")
    imported = run.folders.get("import_data")
    run.data = DataSet.open(imported.path(MANIFEST_FILE) if imported else data.root)
    for line in changes_since(imported.finished()) if imported else ():
        run.say(line)
    prepare(run, needs_truth)


def prepare(run: Run, needs_truth: str = "") -> None:
    """Check what needs ground truth, and resolve `auto` values, once the images are known."""
    config = run.config
    if needs_truth:
        require_truth(run, needs_truth)
    if config.cycles.update == "if_better" and config.cycles.rounds:
        require_truth(run, "cycles.update: if_better", "use cycles.update: always")
    earlier = pinned(run)
    pin_workers(run, earlier)
    pin_precision(run, earlier)


def take_import(run: Run, report: ImportReport) -> None:
    """Go on with photographs that were imported, and say what was understood of them.

    Their files count: the next folder may hold others of the same names and sizes.

    Raises:
        BudgetExceededError: more images failed than may.
    """
    require_budget("import", report.errors, run.config.errors.budget, report.total)
    run.say(console(report))
    run.data = DataSet(report.manifest).with_files()


def _rasterize(run: Run) -> Stage | None:
    from pmm_ray.stages import rasterize_masks

    if rasterize_masks.objects_fingerprint(run.data.manifest.uri) is None:
        return None
    return rasterize_masks.stage(run.config.data, run.data)


def _take_truth(run: Run) -> None:
    if "rasterize_masks" in run.folders:
        run.data = run.data.with_truth_of(run["rasterize_masks"].hash)


def require_truth(run: Run, what: str, instead: str = "") -> None:
    """Refuse, before anything is trained, what needs ground truth where there is none.

    Args:
        what: needs it.
        instead: what to do without; empty: nothing can be done.

    Raises:
        CannotRunError: no held-out image has a ground-truth mask.
    """
    split = run.config.data.held_out_split
    if not run.data.with_truth(split):
        raise CannotRunError(
            f"{what} compares on images of split {split!r} with ground-truth masks, and this data "
            f"set has none{f': {instead}' if instead else ''}"
        )


TRAININGS = ("classifier", "multicrop", "affinity", "segmenter")
"""Sections of trainings."""


def pinned(run: Run) -> dict[str, Any]:
    """The configuration of the folder's earlier attempts, as plain values.

    Empty if there is none, or if every stage is computed anew.
    """
    uri = storage.join(run.session.run_dir, RESOLVED_FILE)
    session = run.session
    anew = session.selection.fresh and session.selection.whole and not session.goes_on
    if anew or not storage.exists(uri):
        return {}
    import yaml

    return yaml.safe_load(storage.read_bytes(uri)) or {}


def pin_workers(run: Run, earlier: Mapping[str, Any]) -> None:
    """Resolve `workers: auto` once per run folder: trained weights depend on it.

    Args:
        earlier: see `pinned`.

    Raises:
        CannotRunError: the nodes cannot hold the workers of a training that is still to be done;
            found now, not when its turn comes.
    """
    from pmm_ray.runtime.training.workers import count_workers, plan_workers

    update: dict[str, Any] = {}
    for name in TRAININGS:
        section = getattr(run.config, name)
        if section.workers == "auto":
            workers = earlier.get(name, {}).get("workers", "auto")
            if workers == "auto":
                workers = count_workers(name, section, run.session.cluster)
            update[name] = section.model_copy(update={"workers": workers})
    run.config = run.config.model_copy(update=update)
    for step in _trainings_ahead(run):
        assert step.section is not None
        name = base_name(step.name).removeprefix("train_")
        plan_workers(name, step.section(run.config), run.session.cluster)


def pin_precision(run: Run, earlier: Mapping[str, Any]) -> None:
    """Resolve `precision: auto` once per run folder: not every card has bfloat16.

    Args:
        earlier: see `pinned`.
    """

    def known(section: SomeInference, before: Mapping[str, Any]) -> SomeInference:
        if section.precision != "auto":
            return section
        value = before.get("precision", "auto")
        if value == "auto":
            value = "bfloat16" if run.session.cluster.has_bfloat16() else "float32"
        return section.model_copy(update={"precision": value})

    config = run.config
    base = known(config.base.cams, earlier.get("base", {}).get("cams", {}))
    run.config = config.model_copy(
        update={
            "base": config.base.model_copy(update={"cams": base}),
            "cams": known(config.cams, earlier.get("cams", {})),
            "predict": known(config.predict, earlier.get("predict", {})),
        }
    )


def _trainings_ahead(run: Run) -> list[Step]:
    """The trainings that may run now and that no attempt finished."""
    selection, place = run.session.selection, run.session.run_dir
    # the folders themselves: `run.json` names the stages that the last attempt came to
    finished = {
        name.rpartition("-")[0]
        for name in storage.list_folders(place)
        if not selection.fresh
        and name.startswith("train_")
        and storage.exists(storage.join(place, name, SUMMARY_FILE))
    }
    return [
        step
        for step in run.steps
        if step.section and selection.has(step.name) and step.name not in finished
    ]
