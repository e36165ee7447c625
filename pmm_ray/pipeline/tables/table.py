"""One of the paper's tables: how it is kept in a run folder, printed, and shown in the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pmm_ray.pipeline.run import Run, Step
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary

if TYPE_CHECKING:
    from rich.console import Console

Cell = str | float | None
"""Text; a score 0..1, shown in %; or nothing."""


@dataclass(frozen=True)
class PaperTable:
    """A table and what it was measured on."""

    number: int
    title: str
    columns: tuple[str, ...]
    """Heads of the columns."""
    rows: tuple[tuple[Cell, ...], ...]
    """As many cells as columns each."""
    note: str
    """Images and split, and what else a reader must know."""


def table_stage(number: int) -> str:
    """The name under which a table's stage is planned: `table-2`."""
    return f"table-{number}"


def table_step(number: int, make: Callable[[Run], PaperTable]) -> Step:
    """The last step of a table: it holds what the rows before it scored."""

    def keep(run: Run) -> Stage:
        details = {"table": asdict(make(run))}

        def write(context: RunContext, folder: StageFolder) -> Summary:
            return Summary(stage=folder.stage, hash=folder.hash, details=details)

        return Stage(table_stage(number), (details,), write)

    return Step(table_stage(number), keep)


def read_paper_table(folder: StageFolder) -> PaperTable:
    """The table of a finished step."""
    found = folder.finished().details["table"]
    rows = tuple(tuple(row) for row in found["rows"])
    return PaperTable(**(found | {"columns": tuple(found["columns"]), "rows": rows}))


def print_table(table: PaperTable, console: Console) -> None:
    """Print a table; scores in %."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(table.columns):
        text = any(isinstance(row[number], str) for row in table.rows)
        grid.add_column(column, justify="left" if text else "right", no_wrap=True)
    for row in table.rows:
        grid.add_row(*map(cell_text, row))
    console.print(f"Table {table.number}: {table.title}")
    console.print(grid)
    console.print(table.note)


def cell_text(cell: Cell) -> str:
    """A score as %, text as it is, nothing as a dash."""
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else f"{cell * 100:.2f}"
