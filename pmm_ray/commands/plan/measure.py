"""Run a recipe on a sample, with trainings of a few steps, and read off what each stage took.

The pipeline itself runs, so the plan also times a stage that is not named here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.fs as pafs

from pmm_ray.commands.plan.sample import Group, Sample, choose_sample
from pmm_ray.commands.plan.trainings import short_training, training_section, validated_images
from pmm_ray.config import RunConfig, Section, TrainingConfig
from pmm_ray.pipeline.data import prepare
from pmm_ray.pipeline.run import Run, Step, open_run
from pmm_ray.pipeline.steps import steps
from pmm_ray.report.run_data import StageRecord, load_run
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.files import MANIFEST_FILE
from pmm_ray.runtime.core.index import read_index
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.core.stage import Stage, Summary
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.training.workers import loader_processes

# Processes that a table stage is timed on: enough to share memory and caches as in the run.
_WORKERS = 4


@dataclass(frozen=True)
class TableTiming:
    """A stage that maps images to rows, in one pool or in two."""

    start_seconds: float
    """Wall time that does not depend on the number of images."""
    cpu_seconds: float
    """Core seconds for one image."""
    gpu_seconds: float
    """GPU seconds for one image."""
    image_bytes: float
    groups: frozenset[Group]
    """Whose images the stage takes."""


@dataclass(frozen=True)
class TrainingTiming:
    """A stage that trains a network."""

    start_seconds: float
    image_seconds: float
    """Wall time of a step, divided by its images."""
    validation_seconds: float
    """Wall time of a validation, divided by its images."""
    workers: int
    cpus: int
    """That all workers and their loader processes hold."""
    network_bytes: int


@dataclass(frozen=True)
class ImportTiming:
    """The import, which is done whole."""

    seconds: float
    bytes: int


Timing = TableTiming | TrainingTiming | ImportTiming


@dataclass(frozen=True)
class Measured:
    """What the sample took."""

    timings: Mapping[str, Timing]
    """Stage -> what it took; without those that cannot be scaled up."""
    sample: Sample
    cluster: ClusterResources
    connect_seconds: float
    """What it took to start or find Ray."""


class _SampleSteps:
    """The steps of a recipe, going on with a few images once the whole data set is imported."""

    def __init__(self, config: RunConfig, images: int) -> None:
        self._config = config
        self._images = images
        self.sample: Sample | None = None

    def steps(self) -> list[Step]:
        imported, *others = steps(self._config)
        return [replace(imported, make=self._import, after=self._take), *others]

    def _import(self, run: Run) -> Stage | None:
        if self._config.data.source == "manifest":
            return None
        from pmm_ray.stages import import_data

        return replace(import_data.stage(self._config), identity=("whole",))

    def _take(self, run: Run) -> None:
        data, imported = self._config.data, run.folders.get("import_data")
        uri, folder = storage.absolute(data.root), run.session.run_dir
        if imported is not None:
            uri, folder = imported.path(MANIFEST_FILE), imported.uri
        self.sample = choose_sample(
            uri, folder, (data.train_split, data.held_out_split), self._images
        )
        run.data = DataSet.open(self.sample.uri)
        training = self.sample.count(data.train_split)
        run.config = sample_config(self._config, run.session.cluster, training)
        prepare(run)


def measure(
    config: RunConfig, run_dir: str, images: int, address: str, progress: Progress
) -> Measured:
    """Time the stages of a recipe.

    Args:
        run_dir: of the timing; the caller deletes it.
        images: in the sample.
        address: see `cluster.connect`.

    Raises:
        CannotRunError: as of the run itself.
    """
    short = config.model_copy(
        update={
            "cycles": config.cycles.model_copy(update={"rounds": 0}),
            "masks": config.masks.model_copy(update={"fused": False}),
        }
    )
    plan = _SampleSteps(short, images)
    with open_run(run_dir, short, plan.steps(), progress, address) as run:
        started = time.monotonic()
        cluster = run.session.cluster
        connect_seconds = time.monotonic() - started
        run.follow()
        sample = plan.sample
        assert sample is not None, "the import comes first"
    events: dict[str, list[dict[str, Any]]] = {}
    for row in read_events(run_dir):
        events.setdefault(str(row.get("stage")), []).append(row)
    timings: dict[str, Timing] = {}
    for record in load_run(run_dir, with_curves=False).stages:
        timing = _timing(record, events.get(record.stage, []), sample, short, cluster)
        if timing is not None:
            timings[record.stage] = timing
    return Measured(timings, sample, cluster, connect_seconds)


def sample_config(config: RunConfig, cluster: ClusterResources, training_images: int) -> RunConfig:
    """The recipe with short trainings, few workers and small chunks; all else as it is.

    Args:
        training_images: of the sample.
    """
    update = {
        name: _reduced(section, cluster, training_images)
        for name in RunConfig.model_fields
        if isinstance(section := getattr(config, name), Section)
    }
    return config.model_copy(update=update)


def _reduced(section: Section, cluster: ClusterResources, training_images: int) -> Section:
    """A section, and those inside it, with few steps, few workers and small chunks."""
    update: dict[str, Any] = {
        name: _reduced(inner, cluster, training_images)
        for name in type(section).model_fields
        if isinstance(inner := getattr(section, name), Section)
    }
    if isinstance(section, TrainingConfig):
        return section.model_copy(update=update | short_training(section, cluster, training_images))
    actors = cluster.default_actors(getattr(section, "gpus_per_actor", 1.0))
    for field, most in (("tasks", cluster.default_tasks()), ("actors", actors)):
        wanted = getattr(section, field, None)
        if wanted is not None:
            update[field] = min(most, _WORKERS, most if wanted == "auto" else wanted)
    if hasattr(section, "batch_size"):
        update["batch_size"] = 2  # several chunks per worker: the first one warms it up
    return section.model_copy(update=update)


def _timing(
    record: StageRecord,
    events: Sequence[Mapping[str, Any]],
    sample: Sample,
    config: RunConfig,
    cluster: ClusterResources,
) -> Timing | None:
    """What a finished stage took; None where it is of no kind that can be scaled up."""
    summary, folder = record.summary, record.folder.uri
    assert summary is not None, "a stage writes its summary last"
    if record.stage == "import_data":
        return ImportTiming(summary.seconds, _bytes_below(folder))
    if "training_seconds" in summary.details:
        return _training_timing(record, summary, events, sample, config, cluster)
    chunks = [row for row in events if row["event"] == "chunk" and row["images"]]
    starts = [row for row in events if row["event"] == "stage_start"]
    if not chunks or not starts:
        return None
    start = starts[-1]
    workers = min(int(start["workers"]), len(chunks))
    # the first chunk of each worker compiles, loads and fills caches
    warm = chunks[workers:] or chunks
    cpu, gpu = _image_seconds(warm, start)
    # of a worker that has a part of a GPU
    held = gpu / (start["producer_gpus"] or start["gpus"] or 1.0)
    images = sum(row["images"] for row in chunks)
    ids = [*read_index(folder).image_ids, *(row.image_id for row in record.errors)]
    return TableTiming(
        start_seconds=max(0.0, summary.seconds - max(cpu, held) * images / workers),
        cpu_seconds=cpu,
        gpu_seconds=gpu,
        image_bytes=sum(row["bytes"] for row in chunks) / images,
        groups=frozenset(sample.group_of[i] for i in ids),
    )


def _image_seconds(
    chunks: Sequence[Mapping[str, Any]], start: Mapping[str, Any]
) -> tuple[float, float]:
    """Seconds of cores and of GPUs for one image, from the chunks of a stage.

    One pool: the wall time of its workers, which have a core each. Two pools share the cores: the
    CPU time of their processes, without what they waited.
    """
    images = sum(row["images"] for row in chunks)

    def total(name: str) -> float:
        return float(sum(row[name] for row in chunks)) / images

    if start["producer_gpus"] is None:
        seconds = total("pool_seconds")
        # a share of a CPU is a scheduling device: a worker computes on a whole one
        cpus = 1.0 if start["cpus"] and not start["gpus"] else start["cpus"]
        return seconds * cpus, seconds * start["gpus"]
    if start["producer_gpus"]:
        return total("pool_seconds"), total("producer_pool_seconds") * start["producer_gpus"]
    return total("cpu_seconds") + total("producer_cpu_seconds"), 0.0


def _training_timing(
    record: StageRecord,
    summary: Summary,
    events: Sequence[Mapping[str, Any]],
    sample: Sample,
    config: RunConfig,
    cluster: ClusterResources,
) -> TrainingTiming | None:
    section = training_section(config, record.stage)
    if section is None or not summary.images_per_second:
        return None
    validations = [row["seconds"] for row in events if row["event"] == "validation"]
    workers = summary.details["workers"]
    steps, batch = summary.details["steps"], summary.details["batch_size"]
    image_seconds = 1 / summary.images_per_second
    timed = (steps - 1) * batch * image_seconds + sum(validations)
    # the first validation warms up the network's kernels
    usual = validations[1:] or validations
    held_out = config.data.held_out_split
    validated = validated_images(
        section, sample.count(held_out), sample.count(held_out, truth=True)
    )
    return TrainingTiming(
        start_seconds=max(0.0, summary.seconds - timed),
        image_seconds=image_seconds,
        validation_seconds=sum(usual) / len(usual) / validated if usual and validated else 0.0,
        workers=workers,
        cpus=workers * (section.threads_per_worker + loader_processes(section, cluster, workers)),
        network_bytes=_bytes_below(record.folder.uri),
    )


def _bytes_below(folder: str) -> int:
    filesystem, path = storage.resolve(folder)
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    return sum(info.size or 0 for info in found)
