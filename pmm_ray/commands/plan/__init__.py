"""`pmm plan`: what a recipe will take, from timing a few images and a few training steps."""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from pmm_ray.commands import command, run_folder
from pmm_ray.runtime.core import lease, storage
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.runtime.core.progress import Progress, format_seconds
from pmm_ray.runtime.core.recipes import read_recipe

# a plan's own folder: no name that anybody else gives
_SCRATCH, _SCRATCHES = ".pmm-plan-{}", re.compile(r"\.pmm-plan-[0-9a-f]{8}")


@command
def plan_recipe(
    progress: Progress,
    recipe: str | Path,
    *,
    run_dir: str | None = None,
    settings: Sequence[str] = (),
    address: str = "auto",
    sample: int = 20,
    cores: int | None = None,
    price: float | None = None,
) -> None:
    """Time a recipe on a sample and print what the whole of it takes, stage by stage.

    Nothing of the run itself is computed or changed: the sample is worked on in a new folder of
    the run's, which is deleted, and the numbers are kept in `RUN/plan.json`.

    Args:
        recipe, run_dir, settings, address: see `run_recipe`.
        sample: images to time.
        cores: also predict for a cluster with so many CPUs.
        price: of a core for an hour, in any currency.
    """
    from pmm_ray.commands.plan.computed import gpu_hours
    from pmm_ray.commands.plan.estimate import estimate
    from pmm_ray.commands.plan.measure import measure
    from pmm_ray.commands.plan.sample import usual_size
    from pmm_ray.commands.plan.table import card_table, notes, plan_table
    from pmm_ray.report.console import plain_console, print_whole

    started = time.monotonic()
    config = read_recipe(recipe, settings)
    place = run_folder(run_dir, config)
    with _scratch(place) as scratch:
        measured = measure(config, scratch, sample, address, progress)
        manifest = open_manifest(measured.sample.uri)
        size = usual_size(manifest.uri)
    gpus, here = measured.cluster.gpus, measured.cluster.default_tasks()
    costs = estimate(config, measured.timings, measured.sample, gpus, measured.connect_seconds)
    computed = {} if gpus >= 1 else gpu_hours(config, costs, size, manifest.label_space)
    timed = len(measured.sample.group_of)
    rows = [
        asdict(cost)
        | {"cpu_hours": cost.cpu_hours, "gpu_hours": cost.gpu_hours}
        | {"seconds": cost.seconds(here, gpus) if cost.timed else None}
        | ({"seconds_on_cores": cost.seconds(cores, gpus)} if cores else {})
        for cost in costs
    ]
    content = {"cores": here, "gpus": gpus, "sample": timed, "stages": rows}
    text = json.dumps(content | {"gpu_hours_computed": computed}, indent=1)
    storage.write_bytes(storage.join(place, "plan.json"), text.encode())
    console = plain_console()
    print_whole(plan_table(costs, here, gpus, cores, price), console)
    if computed:
        print_whole(card_table(computed), console)
    for line in notes(costs, cores, gpus):
        print(line)
    print(f"timed on {timed} images in {format_seconds(time.monotonic() - started)}")


@contextlib.contextmanager
def _scratch(place: str) -> Iterator[str]:
    """A new folder below `place`, deleted at the end; those of plans that were killed are, too."""
    for name in filter(_SCRATCHES.fullmatch, storage.list_names(place)):
        if not lease.is_held(storage.join(place, name)):
            storage.delete_folder(storage.join(place, name))
    attempt = uuid.uuid4().hex
    scratch = storage.join(place, _SCRATCH.format(attempt[:8]))
    try:
        with lease.hold(scratch, attempt):
            # the run in it has a lease of its own, for a shorter time
            yield storage.join(scratch, "run")
    finally:
        storage.delete_folder(scratch)
