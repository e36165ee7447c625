"""Tables on a console, and those that `pmm run` ends with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from pmm_ray.report.cycles import cycles_of
from pmm_ray.report.run_data import RunData, load_run
from pmm_ray.report.sweeps import choice_lines
from pmm_ray.runtime.core.progress import PipedConsole, format_seconds
from pmm_ray.runtime.core.stage import Summary

_WIDEST = 10_000


@dataclass(frozen=True)
class StageRow:
    """One line of the stage table."""

    stage: str
    done: bool
    images: int
    errors: int
    seconds: float
    images_per_second: float
    mean_iou: Mapping[str, float]
    """Split -> mIoU 0..1 of the masks this stage made, where they were evaluated."""


def rows_of(run: RunData) -> list[StageRow]:
    """The stages in pipeline order; evaluations are in the row of the masks they scored."""
    known = {record.stage for record in run.stages}
    scored = {e.folder.stage for e in run.evaluations if e.masks_stage in known}
    rows = []
    for record in run.stages:
        if record.stage in scored:
            continue
        summary = record.summary or Summary(
            stage=record.stage, hash=record.folder.hash, errors=len(record.errors)
        )
        scores = run.scores_of(record.stage)
        if record.is_evaluation:
            scores = {e.split: e.mean_iou for e in run.evaluations if e.folder == record.folder}
        rows.append(
            StageRow(
                stage=record.stage,
                done=record.summary is not None,
                images=summary.images,
                errors=summary.errors,
                seconds=summary.seconds,
                images_per_second=summary.images_per_second,
                mean_iou={s: v for s, v in scores.items() if not math.isnan(v)},
            )
        )
    return rows


def plain_console(*, soft_wrap: bool = False) -> Console:
    """A console that prints names as they are: `[red] apple` and `:dog:` are no markup."""
    return PipedConsole(markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap)


def print_stage_table(run_dir: str, console: Console) -> None:
    """Print stage, images, errors, seconds, images/s and mIoU (in %, by split), and the cycles.

    Raises:
        CannotRunError: the folder is not a run.
    """
    run = load_run(run_dir, with_curves=False)
    table = Table(box=None, pad_edge=False, header_style="bold", footer_style="dim")
    table.show_footer = True
    total = sum(summary.seconds for summary in run.summaries)
    table.add_column("stage", footer="all, with evaluation", no_wrap=True)
    table.add_column("images", justify="right")
    table.add_column("errors", justify="right")
    table.add_column("seconds", justify="right", footer=format_seconds(total))
    table.add_column("images/s", justify="right")
    table.add_column("mIoU %", justify="right", no_wrap=True)
    for row in rows_of(run):
        if not row.done:
            table.add_row(row.stage, "not finished", str(row.errors or ""), style="yellow")
            continue
        table.add_row(
            row.stage,
            str(row.images) if row.images else "-",
            str(row.errors),
            f"{row.seconds:.1f}",
            format_rate(row.images_per_second),
            format_scores(row.mean_iou, run.held_out_split),
        )
    print_whole(table, console)
    for line in [*choice_lines(run), *filled_lines(run)]:
        console.print(line, soft_wrap=True)
    _print_cycles(run, console)


def _print_cycles(run: RunData, console: Console) -> None:
    """Print one line a round, and one a class with what each round took from it and gave it."""
    cycles = cycles_of(run)
    if cycles is None:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("cyclic masks", "agreement %", "mIoU % between", "foreground %"):
        table.add_column(name, justify="left" if name == "cyclic masks" else "right")
    for r in cycles.rounds:
        table.add_row(f"round {r.number}", *map(_percent, (r.agreement, r.between, r.foreground)))
    print_whole(table, console)
    if cycles.compared:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("lost / gained %")
        for r in cycles.compared:
            table.add_column(f"round {r.number}", justify="right")
        for name in cycles.classes:
            table.add_row(name, *(_change(r.churn.get(name)) for r in cycles.compared))
        print_whole(table, console)
    if cycles.ended:
        console.print(cycles.ended, soft_wrap=True)


def _change(values: Mapping[str, float] | None) -> str:
    return "-" if values is None else f"{values['lost'] * 100:.1f} / {values['gained'] * 100:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f}"


def print_whole(table: Table, console: Console) -> None:
    """Print a table with all its cells: in a file or a narrow terminal `133…` is no number.

    Lines may be longer than the console is wide.
    """
    options = console.options.update(width=_WIDEST)
    needed = Measurement.get(console, options, table).maximum
    before = console.width
    console.width = max(needed, before)
    try:
        console.print(table)
    finally:
        console.width = before


def filled_lines(run: RunData) -> list[str]:
    """What the masks score over the filled classes alone, where the recipe asks for it."""
    scores = [
        f"{e.title} {found * 100:.1f} {e.split}"
        for e in run.evaluations
        if (found := run.filled_iou(e)) is not None
    ]
    if not scores:
        return []
    least, count = run.setting("report", "filled"), len(run.filled_classes) - 1
    of = f"the background and the classes with {least} or more training images ({count})"
    return [f"mIoU % over {of}: {', '.join(scores)}"]


def format_rate(images_per_second: float) -> str:
    """`0.35`, `12.3`, `1240` or `-`."""
    if images_per_second <= 0:
        return "-"
    digits = 2 if images_per_second < 1 else 1 if images_per_second < 100 else 0
    return f"{images_per_second:.{digits}f}"


def format_scores(scores: Mapping[str, float], held_out: str) -> str:
    """`43.0 val, 45.1 train`: the held-out split first."""
    ordered = sorted(scores.items(), key=lambda item: (item[0] != held_out, item[0]))
    return ", ".join(f"{value * 100:.1f} {split}".rstrip() for split, value in ordered)
