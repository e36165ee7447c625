"""`pmm report`: the page of a run folder, written again."""

from __future__ import annotations

from pmm_ray.report import build_report
from pmm_ray.runtime.core.guard import guarded


def write_report(run_dir: str) -> int:
    """Write RUN/report.html and print its path; returns the exit code."""
    return guarded(lambda progress: print(build_report(run_dir)))
