"""`pmm doctor`: what this machine or cluster has, and advice about what it lacks."""

from __future__ import annotations

from collections.abc import Sequence

from pmm_ray.commands import command
from pmm_ray.config import load_recipe, refuse_unread
from pmm_ray.runtime.cluster.connect import connect
from pmm_ray.runtime.cluster.doctor import examine
from pmm_ray.runtime.cluster.preflight import inspect_cluster
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.progress import Progress

_GIB = 1024**3


@command
def diagnose(progress: Progress) -> None:
    """Print what this machine has; the exit code is 1 if a run would fail."""
    checks = examine()
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{'ok ' if check.ok else '!! '} {check.name:{width}}  {check.value}")
        if check.advice:
            print(f"    {'':{width}}  -> {check.advice}")
    if faults := [check.name for check in checks if check.fatal and not check.ok]:
        raise CannotRunError(f"a run would fail here, see above: {', '.join(faults)}")


@command
def diagnose_cluster(
    progress: Progress, run_dir: str | None, settings: Sequence[str], address: str
) -> None:
    """Print a line for each node of a cluster, and the table of what is wrong.

    Args:
        run_dir: folder or uri of a run; None: storage is not checked.
        settings: `section.key=value`, see `load_recipe`; the data's root is looked for if given.
        address: see `connect`.

    Returns:
        The exit code: 0 if every node can do its part, else 1.
    """
    config = load_recipe(None, settings)
    refuse_unread(settings, "pmm doctor", ("data.root", "runtime"))
    place = None if run_dir is None else storage.absolute(run_dir)
    inputs = [storage.absolute(config.data.root)] if config.data.root else []
    with connect(address, config.runtime) as resources:
        report = inspect_cluster(place, config.runtime, inputs=inputs)
    print(f"{resources.nodes} nodes, {resources.cpus:g} CPUs, {resources.gpus:g} GPUs")
    for name, facts in report.nodes.items():
        gpus = "" if facts.gpus_seen is None else f", torch sees {facts.gpus_seen} GPUs"
        versions = ", ".join(f"{package} {of}" for package, of in facts.versions.items())
        free = f"{facts.scratch_free / _GIB:.1f} GiB free in {facts.scratch}"
        print(f"{name}: {versions}; {free}{gpus}")
    if place is None:
        print("storage was not checked: give --run-dir")
    report.require_healthy()
