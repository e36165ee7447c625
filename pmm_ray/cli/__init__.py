"""The `pmm` command: parses, calls, prints. Whatever is slow to import is imported where used.

One module holds the commands of one subject; importing it registers them.
"""

from collections.abc import Sequence

from pmm_ray.cli import ablate, data, eval, export, masks, plan, refine, run
from pmm_ray.cli.app import app

__all__ = ["ablate", "app", "data", "eval", "export", "main", "masks", "plan", "refine", "run"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script and of jobs.

    Args:
        arguments: those of the command line; None: this process's.
    """
    from pmm_ray.runtime.core.progress import lenient_stdout

    lenient_stdout()
    app(arguments)
