"""The paper's tables on the user's own data: a module each, with its steps.

A module's `steps(config, images)` ends with the table's own step. Its rows are stages of the run
folder, so a table that was cut off goes on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pmm_ray.config import RunConfig
    from pmm_ray.pipeline.run import Step


def table_steps(number: int, config: RunConfig, images: int | None) -> list[Step]:
    """The steps of a table.

    Args:
        number: 1 to 6.
        images: held-out images that are scored at most; None: the table's own default.

    Raises:
        CannotRunError: the table does not fit the recipe, or a choice of images.
    """
    found: list[Step] = importlib.import_module(f"{__name__}.table{number}").steps(config, images)
    return list({step.name: step for step in found}.values())
