"""Reports of runs with a damaged file, or with more to tell than a page holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pmm_ray.report import build_report
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow

from .page import read_page
from .run_folder import RunFolder


@pytest.mark.parametrize("data", [b"", b"PAR1 damaged"])
def test_a_damaged_part_of_error_rows_is_named(
    make_run: Callable[..., RunFolder], data: bytes
) -> None:
    run = make_run()
    folder = run.stage("make_cams", errors=[ErrorRow("img-3", "make_cams", "decode", "bad")])
    [part] = Path(folder.errors_uri).iterdir()
    part.write_bytes(data)
    with pytest.raises(CannotRunError, match=rf"{part} is damaged .*summary.json of its stage"):
        build_report(run.uri)


@pytest.mark.parametrize("data", [b"a: [1,\n b: {", b"\xff\xfe\x00bin"])
def test_a_damaged_configuration_is_named(make_run: Callable[..., RunFolder], data: bytes) -> None:
    run = make_run()
    (run.root / "resolved.yaml").write_bytes(data)
    with pytest.raises(CannotRunError, match=r"/resolved.yaml is damaged .*run the recipe again"):
        build_report(run.uri)
    (run.root / "resolved.yaml").write_text("cycles: {rounds: null}\nreport: {gallery: null}\n")
    build_report(run.uri)


def test_a_command_whose_arguments_are_no_utf8_is_shown(
    make_run: Callable[..., RunFolder],
) -> None:
    run = make_run()
    run.write_record(command="pmm run a.yaml --set data.root=/caf\udce9")
    html, _ = read_page(run)
    assert r"data.root=/caf\udce9" in html


def test_many_errors_and_long_messages_leave_a_page_that_is_read(
    make_run: Callable[..., RunFolder],
) -> None:
    run = make_run()
    long = [ErrorRow(f"a-{i}", "make_cams", "internal", "x" * 100_000) for i in range(120)]
    run.stage("make_cams", errors=long)
    html, page = read_page(run)
    assert len(html) < 300_000
    assert "x" * 999 + "…" in html
    assert "The first 100 of 120 rows" in page.words
    assert f"All rows, with host and process: {run.uri}/*/errors/" in page.words
