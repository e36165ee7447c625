"""What each `pmm` command does; `cli/` only parses."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress

P = ParamSpec("P")


def command(does: Callable[Concatenate[Progress, P], None]) -> Callable[P, int]:
    """Make a command of what it does: it is called without `progress` and returns an exit code.

    That is 0: done; 1: cannot run; 3: error budget exceeded; 75: may succeed later; 130:
    interrupted; 141: nobody reads the output. See `guarded`.
    """

    @wraps(does)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        return guarded(lambda progress: does(progress, *args, **kwargs))

    return run


def run_folder(run_dir: str | None, config: RunConfig) -> str:
    """The folder or uri of a recipe's run: `runs/NAME`, where no other is given.

    Raises:
        CannotRunError: it is empty.
    """
    if run_dir == "":
        raise CannotRunError("--run-dir is empty: name a folder (is a shell variable not set?)")
    return storage.absolute(str(Path("runs") / config.name) if run_dir is None else run_dir)
