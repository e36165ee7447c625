"""`pmm report`: the page of a run folder, written again."""

from __future__ import annotations

from pmm_ray.commands import command
from pmm_ray.report import build_report
from pmm_ray.runtime.core.progress import Progress


@command
def write_report(progress: Progress, run_dir: str) -> None:
    """Write RUN/report.html and print its path."""
    print(build_report(run_dir))
