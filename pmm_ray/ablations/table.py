"""One of the paper's tables: how it is kept in a run folder, printed, and shown in the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from pmm_ray.config import section_hash
from pmm_ray.runtime.core.stage import Summary

if TYPE_CHECKING:
    from rich.console import Console

    from pmm_ray.runtime.core.session import Session

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

    @property
    def stage(self) -> str:
        return table_stage(self.number)


def table_stage(number: int) -> str:
    """The name under which a table's stage is planned: `table-2`."""
    return f"table-{number}"


def keep_table(session: Session, table: PaperTable) -> None:
    """Make the table a finished stage of the run, print it, and write the report.

    Args:
        session: its plan holds the table's stage, see `open_session`.
        table: the finished table.
    """
    from rich.console import Console

    from pmm_ray.report import build_report

    details = {"table": asdict(table)}
    session.stage(
        table.stage,
        section_hash(details),
        lambda folder: Summary(stage=folder.stage, hash=folder.hash, details=details),
    )
    session.write_record(finished=True)
    print_table(table, Console(highlight=False, soft_wrap=True))
    print(build_report(session.run_dir))


def print_table(table: PaperTable, console: Console) -> None:
    """Print a table; scores in %."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(table.columns):
        grid.add_column(column, justify=justification(table.rows, number), no_wrap=True)
    for row in table.rows:
        grid.add_row(*map(show, row))
    console.print(f"Table {table.number}: {table.title}")
    console.print(grid)
    console.print(table.note)


def show(cell: Cell) -> str:
    """A score as %, text as it is, nothing as a dash."""
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else f"{cell * 100:.2f}"


def justification(rows: Sequence[Sequence[Cell]], column: int) -> Literal["left", "right"]:
    """Scores stand right, text stands left."""
    return "left" if any(isinstance(row[column], str) for row in rows) else "right"
