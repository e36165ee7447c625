"""An elastic training begins each attempt with as many workers as the nodes hold then."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pmm_ray.runtime.core.resources import away_from
from pmm_ray.runtime.core.selection import section_name
from pmm_ray.runtime.training.workers import Workers, elastic_workers

if TYPE_CHECKING:
    from pmm_ray.runtime.core.stage import RunContext
    from pmm_ray.runtime.training.job import TrainingJob

# Ray may take so long to notice that a node is gone
_PLACED_SECONDS = 20.0


def fitted(job: TrainingJob, context: RunContext) -> TrainingJob:
    """The job with as many workers as find a place now; as it is where none does.

    Args:
        job: of the last attempt.
    """
    ends = time.monotonic() + context.config.runtime.nodes_seconds
    while time.monotonic() < ends:
        workers = elastic_workers(section_name(job.stage), job.config, context.cluster.now())
        if workers is None:  # it waits for nodes, as any training
            return job
        if not _placed(workers, list(context.cluster.avoided)):
            continue
        if workers.count != job.workers:
            context.events.write("training_resized", stage=job.stage, workers=workers.count)
            context.progress.message(
                f"{job.stage}: {workers.count} workers in {workers.passes} passes in place of "
                f"{job.workers} in {job.passes}"
            )
        return replace(
            job,
            workers=workers.count,
            loader_processes=workers.loader_processes,
            passes=workers.passes,
        )
    return job


def _placed(workers: Workers, avoided: list[str]) -> bool:
    """Whether Ray finds a place for all of them soon."""
    from ray.util.placement_group import placement_group, remove_placement_group

    bundle = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    labels = away_from({}, avoided)
    group = placement_group(
        [bundle] * workers.count,
        bundle_label_selector=[labels] * workers.count if labels else None,
    )
    try:
        return bool(group.wait(_PLACED_SECONDS))
    finally:
        remove_placement_group(group)
