"""From what a sample took to what the whole run takes: arithmetic, no files, no Ray."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pmm_ray.commands.plan.measure import ImportTiming, TableTiming, Timing, TrainingTiming
from pmm_ray.commands.plan.sample import Group, Sample
from pmm_ray.commands.plan.trainings import training_length, training_section
from pmm_ray.config import RunConfig
from pmm_ray.pipeline.run import Step
from pmm_ray.pipeline.steps import steps
from pmm_ray.runtime.core.selection import base_name
from pmm_ray.stages.sweep_masks import SAMPLE_IMAGES

# Later rounds are not run on the sample: what does the same work for an image.
_SAME_WORK = {"compare_masks": "evaluate"}
# Stages that are left out where there is no truth.
_SCORES = ("evaluate", "sweep_masks")
# Stages that take no more than so many images.
_MOST_IMAGES = {"sweep_masks-alpha": SAMPLE_IMAGES}


@dataclass(frozen=True)
class Cost:
    """What one stage of a run takes.

    A part of the wall time is the same on any cluster (start-up, and the whole of a training,
    whose workers the recipe sets); the rest is work that is divided over CPUs or GPUs.
    """

    stage: str
    images: int = 0
    bytes: float = 0.0
    """Bytes written."""
    fixed_seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Work divided over CPUs."""
    gpu_seconds: float = 0.0
    """Work divided over GPUs."""
    most_workers: float | None = None
    """More CPUs or GPUs than this are not used; None: as many as there are."""
    held_cpus: float = 0.0
    """CPUs that are taken during the fixed part."""
    held_gpus: float = 0.0
    timed: bool = True
    """False: the plan knows nothing about this stage."""

    @property
    def cpu_hours(self) -> float:
        return (self.cpu_seconds + self.held_cpus * self.fixed_seconds) / 3600

    @property
    def gpu_hours(self) -> float:
        return (self.gpu_seconds + self.held_gpus * self.fixed_seconds) / 3600

    def seconds(self, cpus: float, gpus: float) -> float:
        """Wall time with so many CPUs and GPUs for the work that can be divided."""
        limit = self.most_workers or float("inf")
        work = self.cpu_seconds / max(1.0, min(cpus, limit))
        if self.gpu_seconds:
            work = max(work, self.gpu_seconds / max(1.0, min(gpus, limit)))
        return self.fixed_seconds + work


def estimate(
    config: RunConfig,
    timings: Mapping[str, Timing],
    sample: Sample,
    gpus: float,
    connect_seconds: float = 0.0,
) -> list[Cost]:
    """The cost of every planned stage, in order.

    A stage that was not run on the sample (a later round) costs what one of the same kind did. A
    stage of a kind that was not timed is there with `timed=False`.

    Args:
        timings: from `measure`.
        sample: from `measure`.
        gpus: of the cluster.
        connect_seconds: what starting or finding Ray takes.
    """
    costs = [Cost("start", fixed_seconds=connect_seconds)]
    by_kind = {base_name(name): timing for name, timing in timings.items()}
    for step in steps(config):
        stage, kind = step.name, base_name(step.name)
        if stage == "import_data" and config.data.source == "manifest":
            continue
        if kind == "choose_masks":
            continue  # compares two sums of small tables
        timing = timings.get(stage, by_kind.get(_SAME_WORK.get(kind, kind)))
        later_score = kind in _SCORES and stage not in timings
        if later_score and not _images(stage, frozenset(), config, sample):
            continue  # there is no truth: the run leaves it out as well
        costs.append(_cost(step, timing, config, sample, gpus))
    return _fused(costs) if config.streams_cams else costs


def _cost(
    step: Step, timing: Timing | None, config: RunConfig, sample: Sample, gpus: float
) -> Cost:
    stage, population = step.name, sample.population
    if isinstance(timing, ImportTiming):
        images = sum(population.values())
        return Cost(stage, images, timing.bytes, timing.seconds, held_cpus=1.0)
    if isinstance(timing, TrainingTiming):
        section = training_section(config, stage)
        assert section is not None, "it was timed with it"
        images = _of(population, lambda g: g.split == config.data.train_split and g.labelled)
        held_out = _of(population, lambda g: g.split == config.data.held_out_split)
        with_truth = _of(population, lambda g: g.split == config.data.held_out_split and g.truth)
        trained, validated = training_length(section, images, held_out, with_truth)
        seconds = trained * timing.image_seconds + validated * timing.validation_seconds
        return Cost(
            stage,
            images,
            timing.network_bytes,
            timing.start_seconds + seconds,
            held_cpus=timing.cpus,
            held_gpus=timing.workers if gpus >= 1 else 0,
        )
    if isinstance(timing, TableTiming):
        images = _images(stage, timing.groups, config, sample)
        return Cost(
            stage,
            images,
            images * timing.image_bytes,
            timing.start_seconds,
            cpu_seconds=images * timing.cpu_seconds,
            gpu_seconds=images * timing.gpu_seconds,
            most_workers=_most_workers(step, config, timing.gpu_seconds > 0),
        )
    return Cost(stage, timed=False)


def _most_workers(step: Step, config: RunConfig, on_gpus: bool) -> float | None:
    *path, field = step.pool.split(".")
    section: Any = config
    for name in path:
        section = getattr(section, name, None)
    workers = getattr(section, field, None)
    if not isinstance(workers, int):
        return None
    return workers * (getattr(section, "gpus_per_actor", 1.0) if on_gpus else 1.0)


def _images(stage: str, groups: frozenset[Group], config: RunConfig, sample: Sample) -> int:
    """How many images of the whole data set a stage takes.

    Args:
        stage: its name.
        groups: whose images it took of the sample; later rounds are known by name.
    """
    data, population = config.data, sample.population
    if re.fullmatch(r"(predict|compare)_masks-r\d+", stage):
        return _of(population, lambda g: g.split == data.train_split)
    if stage.startswith("evaluate-cyclic"):
        return _of(population, lambda g: g.split == data.train_split and g.truth)
    if stage.startswith("evaluate-segmenter"):
        return _of(population, lambda g: g.split == data.held_out_split and g.truth)
    images = _of(population, lambda g: g in groups)
    return min(images, _MOST_IMAGES.get(stage, images))


def _of(population: Mapping[Group, int], wanted: Callable[[Group], bool]) -> int:
    return sum(count for group, count in population.items() if wanted(group))


def _fused(costs: list[Cost]) -> list[Cost]:
    """The costs where no CAM is stored: each mask stage makes those that it needs."""
    cams = next((cost for cost in costs if cost.stage == "make_cams" and cost.timed), None)
    if cams is None or not cams.images:
        return costs
    out = []
    for cost in costs:
        if base_name(cost.stage) == "sweep_masks":
            continue  # reads CAMs twice: the run leaves it out as well
        if base_name(cost.stage) == "make_masks":
            share = cost.images / cams.images
            cost = replace(
                cost,
                fixed_seconds=cost.fixed_seconds + cams.fixed_seconds,
                cpu_seconds=cost.cpu_seconds + share * cams.cpu_seconds,
                gpu_seconds=share * cams.gpu_seconds,
            )
        if cost is not cams:
            out.append(cost)
    return out
