"""The contract of a stage: one value, its output folder, its summary, and what its run gets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from pmm_ray.config import RunConfig, section_hash
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.events import EventLog
from pmm_ray.runtime.core.files import SUMMARY_FILE
from pmm_ray.runtime.core.index import Ids, ids_hash
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.resources import ClusterResources


class Summary(BaseModel):
    """What a finished stage says of itself; `summary.json`, written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    """Name with its round or subject, for example `predict_masks-r1`."""
    hash: str
    images: int = 0
    """Rows of the output table (or images trained on)."""
    errors: int = 0
    """Rows of the errors table."""
    seconds: float = 0.0
    """Wall time of the attempt that finished the stage, s; the session measures it."""
    images_per_second: float = 0.0
    """Throughput of the last attempt, start-up left out."""
    metrics: dict[str, float] = {}
    """Results: losses, mIoU."""
    details: dict[str, Any] = {}
    """Anything else worth keeping, as plain JSON (per-class IoU, checkpoint path...)."""
    pixel_labels_used: bool = False
    """Whether the stage read ground-truth masks."""

    def extended(
        self,
        details: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        *,
        pixel_labels_used: bool = False,
    ) -> Summary:
        """The same with further details, and with metrics and the use of pixel labels if given."""
        update: dict[str, Any] = {"details": {**self.details, **details}}
        update |= {} if metrics is None else {"metrics": dict(metrics)}
        update |= {"pixel_labels_used": True} if pixel_labels_used else {}
        return self.model_copy(update=update)


@dataclass(frozen=True)
class StageFolder:
    """`RUN/<stage>-<hash>/`: `part-*.parquet`, `errors/`, `summary.json` written last."""

    uri: str
    stage: str
    hash: str

    @classmethod
    def below(cls, run_dir: str, stage: str, stage_hash: str) -> StageFolder:
        return cls(storage.join(run_dir, f"{stage}-{stage_hash}"), stage, stage_hash)

    @property
    def errors_uri(self) -> str:
        return storage.join(self.uri, "errors")

    def path(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)

    @property
    def result(self) -> str:
        """The hash of a finished stage and of the images that it left out.

        Without error rows it is `hash`. A training that `--retry-errors` does again may have all
        images, and so makes another network.
        """
        left_out = sorted(row.image_id for row in tables.read_errors(self.errors_uri))
        return section_hash(self.hash, left_out) if left_out else self.hash

    def summary(self) -> Summary | None:
        """The summary if the stage is done, else None. Raises CannotRunError: it is damaged."""
        uri = self.path(SUMMARY_FILE)
        try:
            return Summary.model_validate_json(storage.read_bytes(uri))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise CannotRunError(
                f"{uri} is damaged ({error.errors()[0]['msg']}). Delete it and run again what made "
                "it: only what is missing or damaged is made again."
            ) from error

    def finished(self) -> Summary:
        """The summary of a stage that is known to be done."""
        summary = self.summary()
        assert summary is not None, f"{self.stage} is done, so it has a summary"
        return summary

    def reopen(self) -> None:
        """Take the summary back, before anything that it counts is deleted."""
        storage.delete_file(self.path(SUMMARY_FILE))

    def clear(self, keeps: str = "") -> None:
        """Delete all that is in the folder, but for a sub-folder of that name."""
        self.reopen()
        if not keeps:
            storage.delete_folder(self.uri)
            return
        for name in storage.list_folders(self.uri):
            if name != keeps:
                storage.delete_folder(self.path(name))
        for uri in storage.list_files(self.uri):
            storage.delete_file(uri)

    def finish(self, summary: Summary) -> Summary:
        """Mark the stage as done."""
        text = json.dumps(summary.model_dump(mode="json"), indent=1, ensure_ascii=False)
        storage.write_bytes(self.path(SUMMARY_FILE), text.encode())
        return summary


class RunContext(Protocol):
    """What a stage is run with; a `Session` is one."""

    @property
    def run_dir(self) -> str: ...
    @property
    def config(self) -> RunConfig: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def cluster(self) -> ClusterResources:
        """The Ray cluster, which is connected to when a stage first asks for it."""

    @property
    def events(self) -> EventLog: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def attempt(self) -> str:
        """Names this attempt at the run; it holds the lease of the run folder."""

    @property
    def lost(self) -> threading.Event:
        """Set when another run may have taken the folder over: ask `lease.require`."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run. Its module's `stage(...)` makes it from what comes before.

    Attributes:
        name: with its round or subject, for example `predict_masks-r1`.
        identity: all that can change the result, in order: sections (see `Section.identity` in
            config/base.py), plain values, and what the stage reads: trainings by `result`, tables
            by `hash`.
        run: does the work in the folder and returns the summary, which is written last.
        images: ids of those that it takes; a summary made from others is not done (after
            `--retry-errors` upstream). None: it maps no rows.
        keeps: a sub-folder that another stage fills: it stays when this one is done anew.
        current: whether what it read outside of the run is as it was when it wrote a summary.
    """

    name: str
    identity: tuple[Any, ...]
    run: Callable[[RunContext, StageFolder], Summary]
    images: Ids | None = None
    keeps: str = ""
    current: Callable[[Summary], bool] = lambda summary: True

    @property
    def hash(self) -> str:
        """Eight hex digits over the identity; part of the folder's name."""
        return section_hash(*self.identity)

    def took(self, summary: Summary) -> bool:
        """Whether a summary is of the images that the stage takes."""
        return self.images is None or summary.details.get("took") == ids_hash(self.images)

    def folder(self, run_dir: str) -> StageFolder:
        """Where the stage of a run writes."""
        return StageFolder.below(run_dir, self.name, self.hash)
