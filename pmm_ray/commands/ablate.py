"""`pmm ablate`: the paper's tables, and sweeps over the mask parameters, on the user's own data."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pmm_ray.commands import command, run_folder
from pmm_ray.config import ConfigError, MasksConfig, RunConfig
from pmm_ray.pipeline.run import Run, Step, open_run
from pmm_ray.pipeline.steps import last_classifier, recipe_cams, steps_to_cams, walk_steps
from pmm_ray.pipeline.steps import steps as steps_of_run
from pmm_ray.pipeline.tables import table_steps
from pmm_ray.pipeline.tables.table import print_table, read_paper_table
from pmm_ray.report import build_report
from pmm_ray.report.console import plain_console, print_whole
from pmm_ray.report.sweeps import how_chosen, ranked, scores_of
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.recipes import read_recipe
from pmm_ray.runtime.core.stage import Stage, Summary

_FIELDS = ("alpha", "smoothing", "threshold")
_SECTION = "masks."
_MOST_COMBINATIONS = 1000


@dataclass(frozen=True)
class Ablation:
    """What the user asked for.

    Attributes:
        recipe, run_dir, settings, address, retry_errors: see `run_recipe`.
        images: how many images are used at most; None: the ablation's own default.
    """

    recipe: str | Path
    run_dir: str | None = None
    settings: tuple[str, ...] = ()
    address: str = "auto"
    images: int | None = None
    retry_errors: bool = False


def parse_sweeps(sweeps: Sequence[str], config: MasksConfig) -> dict[str, list[float]]:
    """`masks.alpha=3,5,8` -> {"alpha": [3.0, 5.0, 8.0]}, every value checked.

    Raises:
        ConfigError: not of that form, a key that cannot be swept, given twice or out of range.
    """
    known = ", ".join(_SECTION + name for name in _FIELDS)
    values: dict[str, list[float]] = {}
    for sweep in sweeps:
        key, separator, text = sweep.partition("=")
        name = key.strip().removeprefix(_SECTION)
        if not separator or not text.strip():
            raise ConfigError(f"--sweep {sweep}: write it as KEY=VALUE,VALUE,...")
        if name.startswith("crf."):
            raise ConfigError(
                f"--sweep {key}: another CRF needs another lattice, so it cannot share the pass; "
                f"run `pmm ablate --set {key}=...` once per value. One pass can sweep {known}"
            )
        if not key.strip().startswith(_SECTION) or name not in _FIELDS:
            raise ConfigError(f"--sweep {key}: one pass over the masks can sweep {known}")
        if name in values:
            raise ConfigError(f"--sweep {key} is given twice: list all its values in one")
        values[name] = [_value(key, item, name, config) for item in text.split(",")]
        if len(set(values[name])) < len(values[name]):
            raise ConfigError(f"--sweep {sweep}: a value occurs twice")
    if math.prod(map(len, values.values())) > _MOST_COMBINATIONS:
        raise ConfigError(f"more than {_MOST_COMBINATIONS} combinations: sweep fewer values")
    return values


def _value(key: str, text: str, name: str, config: MasksConfig) -> float:
    try:
        value = float(text)
        MasksConfig.model_validate(config.model_dump() | {name: value})
    except ValueError as error:
        reason = str(error) if "\n" not in str(error) else "out of its range"
        raise ConfigError(f"--sweep {key}: {text.strip()!r} does not fit: {reason}") from error
    return value


@command
def run_sweep(progress: Progress, request: Ablation, sweeps: Sequence[str]) -> None:
    """Score every combination, print the tables, and put them into the run's report.

    By ground truth if there is some. Always by the classifier too, with a contact sheet; beside
    ground truth on 100 images at most.

    Args:
        request: recipe, run folder, and the most images in a sample (100 by default).
        sweeps: `masks.key=value,value,...`.
    """
    from pmm_ray.stages import judge_masks, sweep_masks

    config = read_recipe(request.recipe, request.settings)
    values = parse_sweeps(sweeps, config.masks)
    if config.masks.alpha == "auto" and "alpha" not in values:
        raise ConfigError("masks.alpha is auto: sweep it too, or --set masks.alpha=NUMBER")
    combinations = sweep_masks.grid(values)
    images = request.images or sweep_masks.SAMPLE_IMAGES
    method, held_out = config.masks.method, config.data.held_out_split

    def by_truth(run: Run) -> Stage | None:
        if not run.data.scorable(held_out):
            return None
        cams = recipe_cams(run)
        return sweep_masks.stage(
            run.config, run.data, cams, combinations, method=method, images=images
        )

    def by_classifier(run: Run) -> Stage:
        # it takes several times as long as scores by truth, which say more
        known = run.data.scorable(held_out)
        most = min(images, sweep_masks.SAMPLE_IMAGES) if known else images
        cams, classifier = recipe_cams(run), last_classifier(run)
        return judge_masks.stage(
            run.config, run.data, cams, classifier, combinations, method=method, images=most
        )

    walk = walk_steps() if config.affinity.enabled else []
    own = [Step(sweep_masks.STAGE, by_truth), Step(judge_masks.STAGE, by_classifier)]
    with _open(request, config, [*steps_to_cams(config), *walk, *own], progress) as run:
        for step in own:
            if step.name in run.folders:
                print_sweep(run[step.name].finished())


def print_sweep(summary: Summary) -> None:
    """Print the combinations of a finished sweep, and the best; or why there is none."""
    if not summary.details["combinations"]:
        print(how_chosen(summary))
        return
    print_whole(sweep_table(summary.details), plain_console())
    print(how_chosen(summary))
    if chosen := summary.details["chosen"]:
        print("best:", " ".join(f"--set masks.{k}={v:g}" for k, v in chosen.items()))


@command
def run_table(progress: Progress, number: int, request: Ablation) -> None:
    """Make one of the paper's tables and print it."""
    config = read_recipe(request.recipe, request.settings)
    steps = table_steps(number, config, request.images)
    with _open(request, config, steps, progress) as run:
        table = read_paper_table(run[steps[-1].name])
        print_table(table, plain_console(soft_wrap=True))


@contextlib.contextmanager
def _open(
    request: Ablation, config: RunConfig, steps: Sequence[Step], progress: Progress
) -> Iterator[Run]:
    """A run that has come to its end; its report is written last.

    It adds to the record of a run that is in the folder already.
    """
    place = run_folder(request.run_dir, config)
    own = {step.name for step in steps} - {step.name for step in steps_to_cams(config)}
    shared = own & {step.name for step in steps_of_run(config)}
    kept = [name for name in own if name in ("sweep_masks", "judge_masks")]
    with open_run(
        place,
        config,
        steps,
        progress,
        request.address,
        adds=own,
        kept=kept,
        shared=shared,
        retry_errors=request.retry_errors,
    ) as run:
        run.follow()
        yield run
        print(build_report(place))


def sweep_table(details: dict[str, Any]) -> Table:
    """The combinations of a sweep's summary, best first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    scores = scores_of(details)
    for name in (*details["fields"], *scores.values()):
        table.add_column(name, justify="right")
    for row in ranked(details):
        best = {name: row[name] for name in details["fields"]} == details["chosen"]
        table.add_row(
            *(f"{row[name]:g}" for name in details["fields"]),
            *("-" if row[name] is None else f"{row[name] * 100:.2f}" for name in scores),
            style="bold" if best else None,
        )
    return table
