"""A table of the paper: a stage of the run folder, printed, and in the report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pmm_ray.ablations.table import PaperTable, keep_table, print_table, show
from pmm_ray.config import RunConfig
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.session import Selection, Session

TABLE = PaperTable(
    number=2,
    title="From CAM to mask",
    columns=("setting", "baseline", "ours"),
    rows=(("CAM", 0.52721, 0.5), ("CRF <b>", None, 0.6)),
    note="4 images of val",
)


def test_cells() -> None:
    assert [show(cell) for cell in (0.52724, None, "PPMG", 0.0)] == ["52.72", "-", "PPMG", "0.00"]


def test_a_table_is_printed_in_its_order() -> None:
    out = io.StringIO()
    print_table(TABLE, Console(file=out, width=80))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert lines[0][:2] == ["Table", "2:"]
    assert lines[2] == ["CAM", "52.72", "50.00"]
    assert lines[3] == ["CRF", "<b>", "-", "60.00"]
    assert lines[-1] == ["4", "images", "of", "val"]


def test_a_table_is_kept_once_and_shown_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = PaperTable(2, TABLE.title, TABLE.columns, (("CAM", 0.7, None),), TABLE.note)
    for table in (TABLE, TABLE, newer):
        selection = Selection((TABLE.stage,))
        with Session(
            str(tmp_path),
            RunConfig(),
            selection,
            Progress(stream=io.StringIO()),
            adds=frozenset(selection.plan),
        ) as session:
            keep_table(session, table)
    stages = json.loads((tmp_path / "run.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == ["table-2"]
    page = (tmp_path / "report.html").read_text()
    assert "Table 2" in page
    assert "70.0" in page
    assert "52.7" not in page
    assert str(tmp_path / "report.html") in capsys.readouterr().out
