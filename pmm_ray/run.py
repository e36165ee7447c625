"""`pmm run`: a recipe, from its file to its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pmm_ray.config import load_recipe
from pmm_ray.pipeline import planned_stages, run_stages
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import BudgetExceededError
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.session import Selection, Session


def run_recipe(
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
) -> int:
    """Run a recipe and write its report.

    Args:
        recipe: YAML file.
        run_dir: folder or uri of the run; default `runs/<name>`.
        settings: `section.key=value`, see `load_recipe`.
        address: `auto`, `local`, or a Ray address.
        first: name of the first stage that may run.
        last: name of the last.
        only: name of the only ones.
        fresh: compute the selected stages anew.
        retry_errors: run images with error rows again.

    Returns:
        The exit code: 0 done, 1 cannot run, 3 error budget exceeded, 130 interrupted.
    """

    def body(progress: Progress) -> None:
        config = load_recipe(recipe, settings)
        selection = Selection(planned_stages(config), first, last, only, fresh, retry_errors)
        place = storage.absolute(run_dir or str(Path("runs") / config.name))
        with Session(place, config, selection, progress, address) as session:
            session.hold()
            try:
                run_stages(session)
            except BudgetExceededError:
                _report(session)  # its table of errors is what is needed now
                raise
            session.write_record(finished=True)
            _report(session)

    return guarded(body)


def _report(session: Session) -> None:
    from rich.console import Console

    from pmm_ray.report import build_report, print_stage_table

    report = build_report(session.run_dir)
    print_stage_table(session.run_dir, Console(highlight=False))
    print(report)
