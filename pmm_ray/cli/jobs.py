"""What the entry points in `jobs/` share: `pmm run` with the recipe as an option."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pmm_ray.cli.app import app


def run_job(stage: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Run a recipe, or one of its stages, and exit with the run's code.

    Args:
        stage: the only stage that may run (all its rounds and subjects); None: every stage. The
            caller's own `--only`, `--from` or `--until` takes its place.
        arguments: `--recipe FILE` and the options of `pmm run`; default: the command line's.

    Raises:
        SystemExit: always; 0 done, 1 cannot run, 2 usage, 3 error budget exceeded, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False, epilog="All other options are those of `pmm run`; see `pmm run --help`."
    )
    parser.add_argument("--recipe", required=True, metavar="FILE", help="a YAML file of recipes/")
    known, options = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    selects = ("--only", "--from", "--until")
    chosen = any(option.split("=", 1)[0] in selects for option in options)
    only = ["--only", stage] if stage and not chosen else []
    app(["run", known.recipe, *options, *only])
