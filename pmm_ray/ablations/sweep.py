"""`pmm ablate --sweep`: search the mask parameters on held-out images that have ground truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pmm_ray.ablations import Ablation, open_session
from pmm_ray.config import ConfigError, MasksConfig
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress

if TYPE_CHECKING:
    from rich.table import Table

SWEEPABLE = ("alpha", "smoothing", "threshold")
_SECTION = "masks."
_IMAGES = 100
_MOST_COMBINATIONS = 1000


def parse_sweeps(sweeps: Sequence[str], config: MasksConfig) -> dict[str, list[float]]:
    """`masks.alpha=3,5,8` -> {"alpha": [3.0, 5.0, 8.0]}, every value checked.

    Raises:
        ConfigError: not of that form, a key that cannot be swept, given twice or out of range.
    """
    known = ", ".join(_SECTION + name for name in SWEEPABLE)
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
        if not key.strip().startswith(_SECTION) or name not in SWEEPABLE:
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
        reason = str(error).splitlines()[-1] if "\n" not in str(error) else "out of its range"
        raise ConfigError(f"--sweep {key}: {text.strip()!r} does not fit: {reason}") from error
    return value


def run_sweep(request: Ablation, sweeps: Sequence[str]) -> int:
    """Score every combination, print the table, and put it into the run's report.

    Args:
        request: recipe, run folder, and the most images in the sample (100 by default).
        sweeps: `masks.key=value,value,...`.

    Returns:
        The exit code, as of `run_recipe`.
    """

    def body(progress: Progress) -> None:
        from rich.console import Console

        from pmm_ray.report import build_report
        from pmm_ray.stages import sweep_masks

        with open_session(request, ("sweep",), progress) as (session, pipeline):
            values = parse_sweeps(sweeps, session.config.masks)
            if session.config.masks.alpha == "auto" and "alpha" not in values:
                raise ConfigError("masks.alpha is auto: sweep it too, or --set masks.alpha=NUMBER")
            session.hold()
            cams = pipeline.up_to_cams()
            limit = request.images if request.images is not None else _IMAGES
            summary = pipeline.search("sweep", cams, sweep_masks.grid(values), limit)
            session.write_record(finished=True)
            Console(highlight=False).print(sweep_table(summary.details))
            chosen = " ".join(
                f"--set masks.{k}={v:g}" for k, v in summary.details["chosen"].items()
            )
            print(f"best on {summary.images} images of {summary.details['split']}: {chosen}")
            print(build_report(session.run_dir))

    return guarded(body)


def sweep_table(details: dict[str, Any]) -> Table:
    """The combinations of a sweep's summary, best first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (*details["fields"], "mIoU %", "pixel accuracy %"):
        table.add_column(name, justify="right")
    for row in sorted(details["combinations"], key=lambda row: -row["mean_iou"]):
        best = all(row[name] == value for name, value in details["chosen"].items())
        table.add_row(
            *(f"{row[name]:g}" for name in details["fields"]),
            f"{row['mean_iou'] * 100:.2f}",
            f"{row['pixel_accuracy'] * 100:.2f}",
            style="bold" if best else None,
        )
    return table
