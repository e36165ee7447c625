"""How many workers a training has, and what each asks of its node.

An elastic training begins each attempt with as many workers as the nodes hold then.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.resources import ClusterResources, away_from
from pmm_ray.runtime.core.selection import section_name

if TYPE_CHECKING:
    from pmm_ray.config import TrainingConfig
    from pmm_ray.runtime.core.stage import RunContext
    from pmm_ray.runtime.training.job import TrainingJob

_MOST_LOADER_PROCESSES = 8
# Ray may take so long to notice that a node is gone
_PLACED_SECONDS = 20.0


@dataclass(frozen=True)
class Workers:
    """The workers of a training; each fits on one node."""

    count: int
    loader_processes: int
    cpus: int
    """Of each worker, its loader processes included."""
    gpus: int
    passes: int
    """Of each worker, in a step."""


def plan_workers(section: str, config: TrainingConfig, cluster: ClusterResources) -> Workers:
    """The workers of a training on a cluster; of an elastic one, see `elastic_workers`.

    Args:
        section: name of its section, for messages.

    Raises:
        CannotRunError: the batch cannot be split so, or the nodes cannot hold the workers.
    """
    gpus = int(cluster.gpus >= 1)
    if config.elastic and (fitting := elastic_workers(section, config, cluster)):
        return fitting
    count = count_workers(section, config, cluster)
    if fault := _batch_fault(section, config, count):
        raise CannotRunError(fault)
    processes = loader_processes(config, cluster, count)
    workers = Workers(
        count, processes, config.threads_per_worker + processes, gpus, config.accumulate
    )
    cluster.require(
        f"{section}: the training",
        cpus=workers.cpus,
        gpus=gpus,
        workers=count,
        key=f"{section}.workers"
        if config.loader_processes == "auto"
        else f"{section}.workers or {section}.loader_processes",
    )
    return workers


def elastic_workers(
    section: str, config: TrainingConfig, cluster: ClusterResources
) -> Workers | None:
    """The most workers that the nodes which are there now hold; None: not a single one.

    At most one per GPU, or on CPUs as many as were asked for. They share the same batch in passes
    that are no larger than with the workers that were asked for.
    """
    asked, gpus = count_workers(section, config, cluster), int(cluster.gpus >= 1)
    if _batch_fault(section, config, asked):
        return None
    if cluster.offered:
        alive = tuple(node for node in cluster.places if node.node_id)
        cluster = replace(cluster, offered=alive, began_with=())
        if not alive:
            return None
    for count in range(cluster.default_train_workers() if gpus else asked, 0, -1):
        passes = _passes(section, config, asked, count)
        processes = loader_processes(config, cluster, count)
        cpus = config.threads_per_worker + processes
        if passes and cluster.room(cpus, gpus) >= count:
            return Workers(count, processes, cpus, gpus, passes)
    return None


def _passes(section: str, config: TrainingConfig, asked: int, count: int) -> int | None:
    """The fewest passes of `count` workers that are no larger than those of `asked` workers."""
    share = config.batch_size // count
    most = config.batch_size // asked // config.accumulate
    for passes in range(1, share + 1):
        changed = config.model_copy(update={"accumulate": passes})
        if share // passes > most or _batch_fault(section, changed, count):
            continue
        try:
            type(config).model_validate(changed.model_dump())
        except ValueError:  # the section's own rules, as of groups
            continue
        return passes
    return None


def count_workers(section: str, config: TrainingConfig, cluster: ClusterResources) -> int:
    """How many workers a training has; refuses nothing.

    `auto` takes as many as there are GPUs, or fewer, so that each has an equal share of the batch,
    the share can be split into its passes, and no pass has fewer images than the network needs.
    """
    if config.workers != "auto":
        return config.workers
    explicit = 0 if config.loader_processes == "auto" else config.loader_processes
    room = cluster.room(config.threads_per_worker + explicit, int(cluster.gpus >= 1))
    most = min(cluster.default_train_workers(), room or 1)
    shares = range(most, 0, -1)
    return next((n for n in shares if not _batch_fault(section, config, n)), 1)


def loader_processes(config: TrainingConfig, cluster: ClusterResources, workers: int) -> int:
    """Decoding processes of each worker: as asked, or enough that a GPU need not wait.

    As many as still let every worker fit whole on a node. A CPU worker decodes itself: a process
    more would take the CPU that it computes on.
    """
    if config.loader_processes != "auto":
        return config.loader_processes
    if cluster.gpus < 1:
        return 0
    return next(
        (
            processes
            for processes in range(_MOST_LOADER_PROCESSES, 0, -1)
            if cluster.room(config.threads_per_worker + processes, 1) >= workers
        ),
        0,
    )


def _batch_fault(section: str, config: TrainingConfig, workers: int) -> str | None:
    """Why a batch cannot be split over so many workers; None where it can."""
    batch, passes = config.batch_size, config.accumulate
    if batch % workers:
        return (
            f"{section}: a batch of {batch} images cannot be split evenly over {workers} workers: "
            f"change {section}.batch_size or {section}.workers"
        )
    share = batch // workers
    if share % passes:
        return (
            f"{section}: a worker's {share} images cannot be split evenly over {passes} passes: "
            f"change {section}.accumulate, {section}.batch_size or {section}.workers"
        )
    if share // passes < config.least_images:
        return (
            f"{section}.batch_size {batch} leaves each worker {share // passes} image per pass, "
            f"and BatchNorm needs {config.least_images}: raise {section}.batch_size, or lower "
            f"{section}.workers or {section}.accumulate"
        )
    return None


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
