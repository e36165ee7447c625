"""`pmm ablate`: the paper's tables, and sweeps over the mask parameters, on the user's own data.

A table is a module of this package with a function `run(request: Ablation) -> int` (the exit code,
see `guard.guarded`); `TABLES` names it. It is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from pmm_ray.runtime.errors import CannotRunError

# number of the paper's table -> the module that makes it
TABLES: dict[int, str] = {}


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
