"""What a run shows when it ends: one HTML file, and a table on the console."""

from pmm_ray.report.console import print_stage_table
from pmm_ray.report.page import build_report

__all__ = ["build_report", "print_stage_table"]
