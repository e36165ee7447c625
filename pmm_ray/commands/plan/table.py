"""The table that `pmm plan` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pmm_ray.commands.plan.cards import CARDS, EFFICIENCY
from pmm_ray.commands.plan.estimate import Cost
from pmm_ray.runtime.core.progress import format_seconds

if TYPE_CHECKING:
    from rich.table import Table


def plan_table(
    costs: Sequence[Cost], here: float, gpus: float, cores: int | None, price: float | None
) -> Table:
    """One row per stage and their sum.

    Args:
        costs: of all stages.
        here: CPUs of this cluster for stages without a GPU.
        gpus: of this cluster.
        cores: of a cluster to predict for as well.
        price: of a core for an hour; all cores are paid for while a stage runs.
    """
    from rich.table import Table

    clusters = [here] if cores is None else [here, cores]
    titles = ["images", "written", "CPU-hours", "GPU-hours"]
    for number in clusters:
        titles.append(f"wall, {number:.15g} cores")
        if price is not None:
            titles.append(f"cost, {number:.15g} cores")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    timed = [cost for cost in costs if cost.timed]
    for cost in costs:
        if not cost.timed:
            table.add_row(cost.stage, "not timed")
            continue
        images = str(cost.images) if cost.images else ""
        table.add_row(cost.stage, images, *_cells([cost], clusters, gpus, price))
    table.add_row("all stages", "", *_cells(timed, clusters, gpus, price), style="bold")
    return table


def _cells(
    costs: Sequence[Cost], clusters: Sequence[float], gpus: float, price: float | None
) -> list[str]:
    cells = [
        format_bytes(sum(cost.bytes for cost in costs)),
        format_hours(sum(cost.cpu_hours for cost in costs)),
        format_hours(sum(cost.gpu_hours for cost in costs)),
    ]
    for cores in clusters:
        seconds = sum(cost.seconds(cores, gpus) for cost in costs)
        cells.append(format_seconds(seconds))
        if price is not None:
            cells.append(f"{seconds / 3600 * cores * price:.2f}")
    return cells


def card_table(computed: Mapping[str, Mapping[str, float] | str]) -> Table:
    """Hours on cards that are not here, a row per stage with a network; see `gpu_hours`."""
    from rich.table import Table

    title = (
        "hours of one GPU, not timed: computed from counted operations, at "
        f"{100 * EFFICIENCY:.0f} % of what the card's data sheet says"
    )
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    table.add_column("stage", no_wrap=True)
    for card in CARDS:
        table.add_column(card, justify="right", no_wrap=True)
    for stage, hours in computed.items():
        cells = (
            [f"not computed: {hours}"]
            if isinstance(hours, str)
            else [format_hours(hours[card]) for card in CARDS]
        )
        table.add_row(stage, *cells)
    return table


def notes(costs: Sequence[Cost], cores: int | None, gpus: float) -> Iterator[str]:
    """What has to be known to read the table."""
    if gpus >= 1:
        yield "GPU-hours are timed, on this cluster's GPUs"
    missing = [cost.stage for cost in costs if not cost.timed]
    if missing:
        yield f"not in the sums: {', '.join(missing)}"
    if cores is not None and any(cost.stage.startswith("train_") for cost in costs):
        yield "trainings keep the workers that the recipe gives them, whatever the number of cores"


def format_bytes(number: float) -> str:
    """`0 B`, `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def format_hours(hours: float) -> str:
    """Three digits that count: `0.00123`, `4.56`, `789`."""
    if hours == 0:
        return "0"
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.3g}"
