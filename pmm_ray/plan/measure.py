"""Run a recipe on a sample, with trainings of a few steps, and read off what each stage took.

It is the pipeline itself that runs, so a stage that is added to it is timed without being named
here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from pmm_ray.config import AffinityConfig, ClassifierConfig, RunConfig, Section, SegmenterConfig
from pmm_ray.pipeline import Pipeline, planned_stages, run_stages
from pmm_ray.plan.sample import Group, Sample, draw_sample
from pmm_ray.report.run_data import StageRecord, load_run
from pmm_ray.runtime import storage
from pmm_ray.runtime.cluster import ClusterResources
from pmm_ray.runtime.errors import CannotRunError
from pmm_ray.runtime.events import read_events
from pmm_ray.runtime.index import read_index
from pmm_ray.runtime.progress import Progress
from pmm_ray.runtime.sampling import split_workers
from pmm_ray.runtime.session import Selection, Session, base_name
from pmm_ray.runtime.stage import Summary

TrainingConfig = ClassifierConfig | SegmenterConfig | AffinityConfig

# Steps of a training: the first one is left out of its throughput.
_STEPS = 4
# Processes that a table stage is timed on: enough to share memory and caches as in the run.
_WORKERS = 4
# A step on a CPU is timed with as many images per worker as make so many px, and at least two.
_STEP_PIXELS = 1_000_000


@dataclass(frozen=True)
class TableTiming:
    """A stage that maps images to rows."""

    start_seconds: float
    """Wall time that does not depend on the number of images."""
    image_seconds: float
    """Of one worker for one image."""
    image_bytes: float
    cpus: float
    """Of one worker."""
    gpus: float
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


class _SamplePipeline(Pipeline):
    """The pipeline, going on with a sample once the data set is imported."""

    def __init__(self, session: Session, config: RunConfig, images: int) -> None:
        super().__init__(session)
        self._whole = config
        self._wanted = images
        self.sample: Sample | None = None

    def import_data(self) -> None:
        """Import the whole data set; go on with a few of its images."""
        from pmm_ray.stages import import_data

        data = self._whole.data
        if data.source == "manifest":
            uri, folder = storage.absolute(data.root), self.session.run_dir
        else:
            done = self.session.stage(
                "import_data",
                "whole",
                lambda folder: import_data.run(data, self._whole, folder, self.session.progress),
            )
            uri, folder = done.path("manifest.parquet"), done.uri
        splits = (data.train_split, data.held_out_split)
        self.sample = draw_sample(uri, folder, splits, self._wanted)
        self.session.manifest_uri = self.sample.uri
        if data.source != "manifest":
            self._rasterize_masks()
        self.config = self.session.config = sample_config(
            self._whole, self.session.cluster, self.sample.count(data.train_split)
        )
        self._open_manifest()


def measure(
    config: RunConfig, run_dir: str, images: int, address: str, progress: Progress
) -> Measured:
    """Time the stages of a recipe.

    Args:
        config: the recipe.
        run_dir: of the timing; the caller deletes it.
        images: in the sample.
        address: see `cluster.connect`.
        progress: where lines go.

    Raises:
        CannotRunError: as of the run itself.
    """
    short = config.model_copy(
        update={
            "cycles": config.cycles.model_copy(update={"rounds": 0}),
            "masks": config.masks.model_copy(update={"fused": False}),
        }
    )
    selection = Selection(planned_stages(short))
    with Session(run_dir, short, selection, progress, address) as session:
        session.hold()
        started = time.monotonic()
        cluster = session.cluster
        connect_seconds = time.monotonic() - started
        pipeline = _SamplePipeline(session, short, images)
        run_stages(session, pipeline)
        sample = pipeline.sample
        assert sample is not None, "the import comes first"
        session.write_record(finished=True)
    events: dict[str, list[dict[str, Any]]] = {}
    for row in read_events(run_dir):
        events.setdefault(str(row.get("stage")), []).append(row)
    timings: dict[str, Timing] = {}
    for record in load_run(run_dir, with_curves=False).stages:
        timing = _timing(record, events.get(record.stage, []), sample, short)
        if timing is not None:
            timings[record.stage] = timing
    return Measured(timings, sample, cluster, connect_seconds)


def sample_config(config: RunConfig, cluster: ClusterResources, training_images: int) -> RunConfig:
    """The recipe with short trainings, few workers and small chunks; all else as it is.

    Args:
        config: the recipe.
        cluster: what there is.
        training_images: of the sample.
    """
    update: dict[str, Any] = {}
    for name in RunConfig.model_fields:
        section = getattr(config, name)
        if isinstance(section, TrainingConfig):
            update[name] = _short_training(section, cluster, training_images)
        elif isinstance(section, Section):
            update[name] = section.model_copy(update=_small_pool(section, cluster))
    return config.model_copy(update=update)


def _small_pool(section: Section, cluster: ClusterResources) -> dict[str, Any]:
    update: dict[str, Any] = {}
    for field, most in (
        ("tasks", cluster.default_tasks()),
        ("actors", cluster.default_actors()),
    ):
        wanted = getattr(section, field, None)
        if wanted is not None:
            update[field] = min(most, _WORKERS, most if wanted == "auto" else wanted)
    if hasattr(section, "batch_size"):
        update["batch_size"] = 2  # several chunks per worker: the first one warms it up
    return update


def _short_training(section: TrainingConfig, cluster: ClusterResources, images: int) -> Section:
    workers = split_workers(section.workers, cluster.default_train_workers(), section.batch_size)
    batch = section.batch_size
    update: dict[str, Any] = {"workers": workers, "checkpoint_seconds": 1e9}
    if cluster.gpus < 1:
        share = max(2, _STEP_PIXELS // section.crop_size**2)
        batch = min(batch, share * workers)
    if not _weights_are_here(section):
        update["weights"] = "none"
    # the weights stay as they are: no map of an untrained network that is not finite
    update |= {"batch_size": batch, "learning_rate": 1e-9}
    if isinstance(section, SegmenterConfig):
        update |= {"iterations": _STEPS, "min_learning_rate": 0.0}
    else:
        update |= {"epochs": -(-_STEPS // max(1, images // batch))}
    if isinstance(section, ClassifierConfig):
        update |= {"accumulate": 1}
    return section.model_copy(update=update)


def _weights_are_here(section: TrainingConfig) -> bool:
    """A recipe can be planned before its public weights are downloaded."""
    from pmm_ray.nets.weight_files import find_weights

    try:
        uri = find_weights(section.weights, section.backbone)
    except CannotRunError:
        return False
    return uri is None or storage.exists(uri)


def _timing(
    record: StageRecord, events: Sequence[Mapping[str, Any]], sample: Sample, config: RunConfig
) -> Timing | None:
    """What a finished stage took; None where it is of no kind that can be scaled up."""
    summary, folder = record.summary, record.folder.uri
    assert summary is not None, "a stage writes its summary last"
    if record.stage == "import_data":
        return ImportTiming(summary.seconds, _bytes_below(folder))
    if "training_seconds" in summary.details:
        return _training_timing(record.stage, folder, summary, events, sample, config)
    chunks = [row for row in events if row["event"] == "chunk" and row["images"]]
    starts = [row for row in events if row["event"] == "stage_start"]
    if not chunks or not starts:
        return None
    start = starts[-1]
    workers = min(int(start["workers"]), len(chunks))
    # the first chunk of each worker compiles, loads and fills caches
    warm = chunks[workers:] or chunks
    image_seconds = sum(row["seconds"] for row in warm) / sum(row["images"] for row in warm)
    images = sum(row["images"] for row in chunks)
    ids = [*read_index(folder).image_ids, *(row.image_id for row in record.errors)]
    return TableTiming(
        start_seconds=max(0.0, summary.seconds - image_seconds * images / workers),
        image_seconds=image_seconds,
        image_bytes=sum(row["bytes"] for row in chunks) / images,
        cpus=float(start["cpus"]),
        gpus=float(start["gpus"]),
        groups=frozenset(sample.group_of[i] for i in ids),
    )


def _training_timing(
    stage: str,
    folder: str,
    summary: Summary,
    events: Sequence[Mapping[str, Any]],
    sample: Sample,
    config: RunConfig,
) -> TrainingTiming | None:
    section = training_section(config, stage)
    if section is None or not summary.images_per_second:
        return None
    validations = [row["seconds"] for row in events if row["event"] == "validation"]
    steps, batch = summary.details["steps"], summary.details["batch_size"]
    image_seconds = 1 / summary.images_per_second
    timed = (steps - 1) * batch * image_seconds + sum(validations)
    # the first validation warms up the network's kernels
    usual = validations[1:] or validations
    validated = min(sample.count(config.data.held_out_split), _validation_images(section))
    return TrainingTiming(
        start_seconds=max(0.0, summary.seconds - timed),
        image_seconds=image_seconds,
        validation_seconds=sum(usual) / len(usual) / validated if usual and validated else 0.0,
        workers=summary.details["workers"],
        network_bytes=_bytes_below(folder),
    )


def training_section(config: RunConfig, stage: str) -> TrainingConfig | None:
    """The section of a training stage: `train_segmenter-r1` -> `config.segmenter`."""
    section = getattr(config, base_name(stage).removeprefix("train_"), None)
    return section if isinstance(section, TrainingConfig) else None


def training_length(section: TrainingConfig, images: int, held_out: int) -> tuple[int, int]:
    """(images that all steps take, images that all validations take) of a whole training.

    Args:
        section: of the training.
        images: of the training split.
        held_out: images of the held-out split.
    """
    if isinstance(section, SegmenterConfig):
        return section.iterations * section.batch_size, 0
    steps = section.epochs * max(1, images // section.batch_size)
    return steps * section.batch_size, section.epochs * min(held_out, _validation_images(section))


def _validation_images(section: TrainingConfig) -> int:
    return section.validation_images if isinstance(section, ClassifierConfig) else 0


def _bytes_below(folder: str) -> int:
    filesystem, path = storage.resolve(folder)
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    return sum(info.size or 0 for info in found)
