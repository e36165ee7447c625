"""A table of the paper: a stage of the run folder, printed, and in the report."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from pmm_ray.config import RunConfig
from pmm_ray.pipeline.run import open_run
from pmm_ray.pipeline.tables.table import (
    PaperTable,
    cell_text,
    print_table,
    read_paper_table,
    table_step,
)
from pmm_ray.report import build_report
from pmm_ray.runtime.core.progress import Progress

TABLE = PaperTable(
    number=2,
    title="From CAM to mask",
    columns=("setting", "baseline", "ours"),
    rows=(("CAM", 0.52721, 0.5), ("CRF <b>", None, 0.6)),
    note="4 images of val",
)


def test_cells() -> None:
    assert [cell_text(cell) for cell in (0.52724, None, "PPMG", 0.0)] == [
        "52.72",
        "-",
        "PPMG",
        "0.00",
    ]


def test_a_table_is_printed_in_its_order() -> None:
    out = io.StringIO()
    print_table(TABLE, Console(file=out, width=80))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert lines[0][:2] == ["Table", "2:"]
    assert lines[2] == ["CAM", "52.72", "50.00"]
    assert lines[3] == ["CRF", "<b>", "-", "60.00"]
    assert lines[-1] == ["4", "images", "of", "val"]


def test_a_table_is_kept_once_and_shown_in_the_report(tmp_path: Path) -> None:
    newer = PaperTable(2, TABLE.title, TABLE.columns, (("CAM", 0.7, None),), TABLE.note)
    for table in (TABLE, TABLE, newer):
        step = table_step(2, lambda run, table=table: table)  # type: ignore[misc]
        progress = Progress(stream=io.StringIO())
        with open_run(str(tmp_path), RunConfig(), [step], progress, adds=[step.name]) as run:
            run.follow()
            run.session.write_record(finished=True)
            assert read_paper_table(run[step.name]) == table
            build_report(str(tmp_path))
    stages = json.loads((tmp_path / "run.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == ["table-2"]
    page = (tmp_path / "report.html").read_text()
    assert "Table 2" in page
    assert "70.0" in page
    assert "52.7" not in page
