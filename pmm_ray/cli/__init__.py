"""The `pmm` command: parses, calls, prints. Whatever is slow to import is imported where used.

One module holds the commands of one subject; importing it registers them.
"""

from pmm_ray.cli import ablate, data, eval, export, masks, plan, refine, run
from pmm_ray.cli.app import app

__all__ = ["ablate", "app", "data", "eval", "export", "main", "masks", "plan", "refine", "run"]


def main() -> None:
    """Entry point of the console script."""
    app()
