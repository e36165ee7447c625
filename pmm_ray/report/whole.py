"""Tables on a console, whole: in a file or a narrow terminal `133…` is no number."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_WIDEST = 10_000


def print_whole(table: Table, console: Console) -> None:
    """Print a table with all its cells; lines may be longer than the console is wide."""
    options = console.options.update(width=_WIDEST)
    needed = Measurement.get(console, options, table).maximum
    before = console.width
    console.width = max(needed, before)
    try:
        console.print(table)
    finally:
        console.width = before
