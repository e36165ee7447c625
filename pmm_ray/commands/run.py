"""`pmm run`: a recipe, from its file to its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pmm_ray.commands import command, run_folder
from pmm_ray.pipeline.run import open_run
from pmm_ray.pipeline.steps import steps
from pmm_ray.report.outcome import account_run
from pmm_ray.report.run_data import load_run
from pmm_ray.runtime.core.accounting import close
from pmm_ray.runtime.core.errors import BudgetExceededError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.recipes import read_recipe


@command
def run_recipe(
    progress: Progress,
    recipe: str | Path,
    *,
    run_dir: str | None = None,
    settings: Sequence[str] = (),
    address: str = "auto",
    first: str | None = None,
    last: str | None = None,
    only: str | None = None,
    fresh: bool = False,
    retry_errors: bool = False,
) -> None:
    """Run a recipe and write its report.

    Args:
        recipe: path or uri of a YAML file.
        run_dir: folder or uri of the run; default `runs/<name>`.
        settings: `section.key=value`, see `load_recipe`.
        address: `auto`, `local`, or a Ray address.
        first: name of the first stage that may run.
        last: name of the last.
        only: run only the stages of this name.
        fresh: compute the selected stages anew.
        retry_errors: run images with error rows again; a finished training or import that has some
            is done anew.
    """
    config = read_recipe(recipe, settings)
    place = run_folder(run_dir, config)
    with open_run(
        place,
        config,
        steps(config),
        progress,
        address,
        first=first,
        last=last,
        only=only,
        fresh=fresh,
        retry_errors=retry_errors,
    ) as run:
        try:
            run.follow()
        except BudgetExceededError:
            _report(place)  # its table of errors is what is needed now
            raise
        _report(place)
        where = f"{place}/report.html, {place}/*/errors"
        close(account_run(load_run(place, with_curves=False)), where, run.say)


def _report(run_dir: str) -> None:
    from pmm_ray.report import build_report, print_stage_table
    from pmm_ray.report.console import plain_console

    report = build_report(run_dir)
    print_stage_table(run_dir, plain_console())
    print(report, flush=True)
