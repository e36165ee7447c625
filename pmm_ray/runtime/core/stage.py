"""The contract of a stage: its output folder, its summary, and what it is given to run with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pmm_ray.config import RunConfig, section_hash
from pmm_ray.runtime.core import storage, tables

if TYPE_CHECKING:
    from pmm_ray.runtime.cluster.connect import ClusterResources
    from pmm_ray.runtime.core.events import EventLog
    from pmm_ray.runtime.core.manifest import Manifest
    from pmm_ray.runtime.core.progress import Progress


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
        """Hash of what a finished stage made: its own, and of the images that it did without.

        The two differ where there are error rows: with `--retry-errors` a training that is done
        again may have them all, and so makes another network.
        """
        left_out = sorted(row.image_id for row in tables.read_errors(self.errors_uri))
        return section_hash(self.hash, left_out) if left_out else self.hash

    def summary(self) -> Summary | None:
        """The summary if the stage is done, else None."""
        uri = self.path("summary.json")
        try:
            return Summary.model_validate_json(storage.read_bytes(uri))
        except FileNotFoundError:
            return None

    def finish(self, summary: Summary) -> Summary:
        """Mark the stage as done."""
        text = json.dumps(summary.model_dump(mode="json"), indent=1, ensure_ascii=False)
        storage.write_bytes(self.path("summary.json"), text.encode())
        return summary


@dataclass(frozen=True)
class RunContext:
    """What a stage's `run(config, context, ...)` is given besides its own section."""

    run_dir: str
    config: RunConfig
    manifest: Manifest
    cluster: ClusterResources
    events: EventLog
    progress: Progress
    attempt: str
    """Unique per process that runs the pipeline; part writers check it against the lease."""

    @property
    def seed(self) -> int:
        return self.config.seed
