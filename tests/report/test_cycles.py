"""The cyclic rounds in the report and on the console."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pmm_ray.commands import run as run_command
from pmm_ray.pipeline.tables.table import PaperTable, print_table
from pmm_ray.report import build_report, print_stage_table
from pmm_ray.report.console import plain_console
from pmm_ray.report.cycles import cycles_of
from pmm_ray.report.run_data import load_run

from .run_folder import RunFolder

CHURN = {
    "background": {"lost": 0.05, "gained": 0.1, "images_lost": 0, "images_gained": 0},
    "disc": {"lost": 0.25, "gained": 0.125, "images_lost": 1, "images_gained": 2},
}


def compared(run: RunFolder, number: int, agreement: float) -> None:
    metrics = {"agreement": agreement, "mean_iou": 0.6}
    metrics |= {"foreground_before": 0.21, "foreground_after": 0.31}
    run.stage(f"compare_masks-r{number}", metrics=metrics, details={"churn": CHURN})


def printed(run: RunFolder) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    print_stage_table(run.uri, console)
    return console.export_text()


def test_rounds_stand_in_the_report_and_on_the_console(full_run: RunFolder) -> None:
    compared(full_run, 1, 0.875)
    cycles = cycles_of(load_run(full_run.uri))
    assert cycles is not None
    first, second = cycles.rounds
    assert (first.masks_stage, first.agreement, first.foreground) == ("make_masks", None, 0.21)
    assert (second.agreement, second.foreground, second.trained) == (0.875, 0.31, True)
    assert second.masks_iou is not None
    assert second.segmenter_iou is not None
    assert cycles.ended == ""
    html = Path(build_report(full_run.uri)).read_text(encoding="utf-8")
    assert "<h2>Cyclic masks</h2>" in html
    assert '<td class="n">87.5</td>' in html
    assert '<td>disc</td><td class="n">25.0</td><td class="n">12.5</td>' in html
    text = printed(full_run)
    assert "87.5" in text
    assert "25.0 / 12.5" in text


def test_why_a_cycle_ended_early(make_run: Callable[..., RunFolder]) -> None:
    run = make_run()
    run.masks("make_masks", 2)
    run.stage("train_segmenter-r0")
    assert cycles_of(load_run(run.uri)) is None
    config = yaml.safe_load((run.root / "resolved.yaml").read_text())
    (run.root / "resolved.yaml").write_text(
        yaml.safe_dump(config | {"cycles": {"stop_when": 0.95}})
    )
    run.masks("predict_masks-r1", 1)
    compared(run, 1, 0.96)
    assert "more than cycles.stop_when 0.95" in printed(run)
    assert "not trained" in Path(build_report(run.uri)).read_text(encoding="utf-8")


def test_masks_that_were_never_replaced(make_run: Callable[..., RunFolder]) -> None:
    run = make_run()
    run.masks("make_masks", 2)
    run.stage("train_segmenter-r0")
    run.stage(
        "choose_masks-r1",
        metrics={"segmenter": 0.4, "supervision": 0.5},
        details={"update": False, "split": "val"},
        pixel_labels_used=True,
    )
    assert "segmenter that learnt from them scores 40.0 and they themselves 50.0" in printed(run)
    html = Path(build_report(run.uri)).read_text(encoding="utf-8")
    assert "choose_masks-r1 <small>val</small>" in html
    assert "Label churn" not in html


def test_names_of_classes_are_no_markup(
    full_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["[red] apple", "car [/side]", ":dog: [link]"]
    churn = dict.fromkeys(names, CHURN["disc"])
    metrics = {"agreement": 0.9, "mean_iou": 0.6, "foreground_after": 0.3}
    full_run.stage("compare_masks-r1", metrics=metrics, details={"churn": churn})
    run_command._report(full_run.uri)
    said = capsys.readouterr().out
    assert all(f"\n{name} " in said for name in names)


def test_the_rows_of_the_papers_tables_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = PaperTable(6, "[i] of classes", ("class", "mIoU %"), (("[/side] car", 0.5),), "[note]")
    print_table(table, plain_console(soft_wrap=True))
    said = capsys.readouterr().out
    for text in ("Table 6: [i] of classes", "[/side] car", "50.00", "[note]"):
        assert text in said
