"""Reading a run folder back: what ran, how it went, what it scored. Missing pieces are normal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow.compute as pc
import yaml

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.files import RESOLVED_FILE
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.runtime.core.record import read_record
from pmm_ray.runtime.core.stage import StageFolder, Summary

_EVALUATION = "evaluate-"
_DEFAULTS = RunConfig()


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run, finished or not."""

    stage: str
    folder: StageFolder
    summary: Summary | None
    errors: tuple[ErrorRow, ...]

    @property
    def is_evaluation(self) -> bool:
        return self.stage.startswith(_EVALUATION)


@dataclass(frozen=True)
class Evaluation:
    """What one kind of mask scored on one split."""

    title: str
    """Name of the rung, for example `PPMG`."""
    split: str
    masks_stage: str
    mean_iou: float
    """0..1; NaN when no class has ground truth."""
    pixel_accuracy: float
    class_iou: dict[str, float | None]
    """Class name -> IoU 0..1, None without ground truth."""
    excluded: tuple[str, ...]
    """Names of the classes without ground truth."""
    images: int
    folder: StageFolder


@dataclass(frozen=True)
class Curve:
    """The training of one stage, by optimiser step."""

    stage: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]


@dataclass(frozen=True)
class RunData:
    """Everything a report is made of, except pixels."""

    run_dir: str
    record: dict[str, Any]
    """`run.json`."""
    config_text: str
    """`resolved.yaml`; empty if it is missing."""
    config: dict[str, Any]
    """What that says."""
    stages: tuple[StageRecord, ...]
    curves: tuple[Curve, ...]

    def setting(self, section: str, key: str) -> Any:
        """A value of the resolved configuration, or the default where it has none."""
        values = self.config.get(section)
        value = values.get(key) if isinstance(values, dict) else None
        return getattr(getattr(_DEFAULTS, section), key) if value is None else value

    @property
    def held_out_split(self) -> str:
        return str(self.setting("data", "held_out_split"))

    @property
    def manifest_uri(self) -> str | None:
        uri = self.record.get("manifest")
        return storage.anchor(uri, self.run_dir) if isinstance(uri, str) and uri else None

    @cached_property
    def filled_classes(self) -> frozenset[str]:
        """The background and the classes with `report.filled` training images; empty: not asked."""
        least, uri = int(self.setting("report", "filled")), self.manifest_uri
        if not least or uri is None or not storage.exists(uri):
            return frozenset()
        manifest = open_manifest(uri)
        table = tables.read_table(uri, ["labels", "split"])
        table = table.filter(pc.equal(table.column("split"), self.setting("data", "train_split")))
        counts = pc.value_counts(pc.list_flatten(table.column("labels"))).to_pylist()
        labels = [0, *(count["values"] for count in counts if count["counts"] >= least)]
        return frozenset(manifest.label_space.names[label] for label in labels)

    def filled_iou(self, evaluation: Evaluation) -> float | None:
        """Mean IoU 0..1 over the filled classes that have ground truth; None: not asked."""
        found = [
            value
            for name, value in evaluation.class_iou.items()
            if name in self.filled_classes and value is not None
        ]
        return sum(found) / len(found) if found else None

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Finished evaluations, in pipeline order."""
        found = []
        for record in self.stages:
            summary = record.summary
            if not record.is_evaluation or summary is None:
                continue
            details = summary.details
            subject = record.stage.removeprefix(_EVALUATION)
            found.append(
                Evaluation(
                    title=str(details.get("title", subject)),
                    split=str(details.get("split", "")),
                    masks_stage=str(details.get("masks_stage", subject)),
                    mean_iou=summary.metrics.get("mean_iou", float("nan")),
                    pixel_accuracy=summary.metrics.get("pixel_accuracy", float("nan")),
                    class_iou=dict(details.get("class_iou", {})),
                    excluded=tuple(details.get("excluded", ())),
                    images=summary.images,
                    folder=record.folder,
                )
            )
        return tuple(found)

    def scores_of(self, masks_stage: str) -> dict[str, float]:
        """Split -> mIoU of the masks that a stage made."""
        return {e.split: e.mean_iou for e in self.evaluations if e.masks_stage == masks_stage}

    @cached_property
    def final_segmenter(self) -> StageRecord | None:
        """The training of the segmenter that the run ends with; None: there is none.

        It is the last round's, or the one before where `cycles.update: if_better` found that
        better than it. Segmenters of tables do not count.
        """
        done = {s.stage: s for s in self.stages if s.summary is not None}
        names = [f"train_segmenter-r{n}" for n in range(len(done))]
        trained = [done[name] for name in names if name in done]
        if not trained:
            return None
        judged = self.summary(f"choose_masks-r{len(trained)}")
        worse = judged is not None and not judged.details["update"]
        return trained[-2 if worse and len(trained) > 1 else -1]

    @property
    def final_round(self) -> int | None:
        """The round of the final segmenter."""
        final = self.final_segmenter
        return None if final is None else int(final.stage.rsplit("-r", 1)[-1])

    def stage(self, name: str) -> StageRecord | None:
        """The stage of this name, if the run has one."""
        return next((s for s in self.stages if s.stage == name), None)

    @property
    def summaries(self) -> list[Summary]:
        """Those of the finished stages, in pipeline order; several of a sweep that was repeated."""
        return [s.summary for s in self.stages if s.summary is not None]

    def summary(self, name: str) -> Summary | None:
        """That of the last finished stage of this name, if there is one."""
        return next((s for s in reversed(self.summaries) if s.stage == name), None)


def load_run(run_dir: str, *, with_curves: bool = True) -> RunData:
    """Read a run folder.

    Args:
        run_dir: uri of the folder that holds `run.json`.
        with_curves: also read the training curves from the events.

    Raises:
        CannotRunError: there is no readable `run.json`, or a file of the run is damaged.
    """
    run_dir = storage.absolute(run_dir)
    record = read_record(run_dir)
    run = RunData(run_dir, record, *_read_config(run_dir), (), ())
    most = int(run.setting("cycles", "rounds"))
    entries = [entry for entry in record["stages"] if _round_of(entry["stage"]) <= most]
    stages = tuple(_stage(run_dir, entry) for entry in entries)
    return replace(run, stages=stages, curves=_curves(run_dir, stages) if with_curves else ())


def _read_config(run_dir: str) -> tuple[str, dict[str, Any]]:
    """The text of `resolved.yaml`, and what it says."""
    uri = storage.join(run_dir, RESOLVED_FILE)
    try:
        text = storage.read_bytes(uri).decode()
        loaded = yaml.safe_load(text)
    except FileNotFoundError:
        return "", {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CannotRunError(
            f"{uri} is damaged ({reason}): run the recipe again with this --run-dir, which "
            "writes it anew"
        ) from error
    return text, loaded if isinstance(loaded, dict) else {}


def _round_of(stage: str) -> int:
    """The round of the run's own segmenter; tables train more of them than the run has."""
    found = re.search(r"(?:_masks|_segmenter)-r(\d+)(?:-|$)", stage)
    return int(found.group(1)) if found else 0


def _stage(run_dir: str, entry: dict[str, str]) -> StageRecord:
    folder = StageFolder(storage.join(run_dir, entry["folder"]), entry["stage"], entry["hash"])
    errors = tables.read_errors(folder.errors_uri)
    return StageRecord(entry["stage"], folder, folder.summary(), tuple(errors))


def _curves(run_dir: str, stages: Sequence[StageRecord]) -> tuple[Curve, ...]:
    """Curves of the record's trainings; a step that ran again after a crash counts once, as it
    ended."""
    hashes = {record.stage: record.folder.hash for record in stages}
    runs = dict(hashes)  # what an older run's events do not tell
    found: dict[str, list[tuple[int, float, float]]] = {stage: [] for stage in hashes}
    for row in read_events(run_dir, "training_start", "train_step"):
        stage = str(row["stage"])
        if stage not in hashes:
            continue
        if row["event"] == "training_start":
            runs[stage] = row.get("hash", hashes[stage])
        elif runs[stage] == hashes[stage]:
            points, step = found[stage], int(row["step"])
            while points and points[-1][0] >= step:  # of an earlier attempt that came further
                points.pop()
            if row.get("loss") is not None:
                points.append((step, float(row["loss"]), float(row["learning_rate"])))
    return tuple(
        Curve(stage, *zip(*points, strict=True)) for stage, points in found.items() if points
    )
