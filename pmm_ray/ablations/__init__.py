"""`pmm ablate`: the paper's tables, and sweeps over the mask parameters, on the user's own data.

A table is a module of this package with a function `run(request: Ablation) -> int` (the exit code,
see `guard.guarded`); `TABLES` names it. It is imported when it is asked for. Its rows are stages of
the run folder, so a table that was cut off goes on; `table.keep_table` ends it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pmm_ray.runtime.core.errors import CannotRunError

if TYPE_CHECKING:
    from pmm_ray.pipeline import Pipeline
    from pmm_ray.runtime.core.progress import Progress
    from pmm_ray.runtime.core.session import Session

# number of the paper's table -> the module that makes it
TABLES: dict[int, str] = {
    1: "pmm_ray.ablations.table1",
    2: "pmm_ray.ablations.table2",
    3: "pmm_ray.ablations.table3",
    4: "pmm_ray.ablations.table4",
    5: "pmm_ray.ablations.table5",
    6: "pmm_ray.ablations.table6",
}


@dataclass(frozen=True)
class Ablation:
    """What the user asked for.

    Attributes:
        recipe: YAML file.
        run_dir: folder or uri of the run; default `runs/<name>`.
        settings: `section.key=value`, see `load_recipe`.
        address: `auto`, `local`, or a Ray address.
        images: how many images are used at most; None: the ablation's own default.
    """

    recipe: str | Path
    run_dir: str | None = None
    settings: tuple[str, ...] = ()
    address: str = "auto"
    images: int | None = None


@contextlib.contextmanager
def open_session(
    request: Ablation, stages: tuple[str, ...], progress: Progress
) -> Iterator[tuple[Session, Pipeline]]:
    """A session whose plan is the recipe's up to its CAMs, then the ablation's own stages.

    It runs what is not done yet of the first (`pipeline.up_to_cams()`), and adds to the record of
    a run that is in the folder already. The caller takes the lease with `session.hold()`.

    Args:
        request: what the user asked for.
        stages: names of the ablation's stages.
        progress: from `guarded`.
    """
    from pmm_ray.config import load_recipe
    from pmm_ray.pipeline import Pipeline, planned_stages
    from pmm_ray.runtime.core import storage
    from pmm_ray.runtime.core.session import Selection, Session

    config = load_recipe(request.recipe, request.settings)
    planned = planned_stages(config)
    plan = (*planned[: planned.index("make_cams") + 1], *stages)
    place = storage.absolute(request.run_dir or str(Path("runs") / config.name))
    with Session(
        place, config, Selection(plan), progress, request.address, frozenset(stages)
    ) as session:
        yield session, Pipeline(session)


def run_table(number: int, request: Ablation) -> int:
    """Make one of the paper's tables; returns the exit code.

    Raises:
        CannotRunError: there is no such table.
    """
    if number not in TABLES:
        known = ", ".join(str(n) for n in sorted(TABLES)) or "none yet"
        raise CannotRunError(f"table {number} is not available; the tables that are: {known}")
    code: int = importlib.import_module(TABLES[number]).run(request)
    return code
