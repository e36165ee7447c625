"""Mistakes at the command line: a line that says what to do, an exit code, and no traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmm_ray.config import RunConfig
from pmm_ray.pipeline.run import open_run
from pmm_ray.pipeline.steps import steps
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.sources.datasets.shapes import make_shapes

REPOSITORY = Path(__file__).resolve().parents[1]
SHAPES = str(REPOSITORY / "recipes" / "shapes.yaml")


def said(*arguments: str) -> str:
    """What a command that must fail writes to its error stream."""
    command = [sys.executable, "-m", "pmm_ray.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for inside in (str(file), str(file / "run")):
        for command in (
            ("run", SHAPES, "--run-dir", inside),
            ("data", "shapes", inside),
            ("data", "download", "voc12", inside),
        ):
            text = said(*command)
            assert f"cannot make the folder {file}" in text
            assert "choose another place" in text


def test_a_report_of_no_run(tmp_path: Path) -> None:
    assert f"{tmp_path} holds no run.json" in said("report", str(tmp_path))


def test_no_stage_between_from_and_until(tmp_path: Path) -> None:
    text = said(
        "run", SHAPES, "--run-dir", str(tmp_path), "--from", "predict_masks-r0-val",
        "--until", "make_cams",
    )  # fmt: skip
    assert "--from predict_masks-r0-val comes after --until make_cams" in text


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("", "needs --set data.root=FILE.parquet"),
        ("absent.parquet", "no manifest at"),
        ("labels.csv", "cannot be read as a Parquet file"),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, root: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text("image_id,labels\n")
    settings = ["--set", "data.source=manifest"]
    settings += ["--set", f"data.root={tmp_path / root}"] if root else []
    assert message in said("run", SHAPES, "--run-dir", str(tmp_path / "run"), *settings)


def test_a_class_named_twice(tmp_path: Path) -> None:
    make_shapes(str(tmp_path), images=4, size=48, classes=2, seed=0)
    (tmp_path / "classes.txt").write_text("disc\nsquare\ndisc\n")
    settings = ("--set", "data.source=folder", "--set", f"data.root={tmp_path}")
    text = said("run", SHAPES, "--run-dir", str(tmp_path / "run"), *settings)
    assert f"{tmp_path}/classes.txt makes no label space: class names occur twice: ['disc']" in text


def test_a_recipe_that_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe\n")
    assert "is no text in UTF-8" in said("run", str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("section", ["classifier", "multicrop", "affinity", "segmenter"])
@pytest.mark.parametrize("name", ["absent.pth", "damaged.pth"])
def test_weights_that_cannot_be_used_are_found_out_first(
    tmp_path: Path, section: str, name: str
) -> None:
    (tmp_path / "damaged.pth").write_text("<html>404</html>")
    values = {"multicrop": {"enabled": True}, "affinity": {"enabled": True}}
    values[section] = values.get(section, {}) | {"weights": str(tmp_path / name)}  # type: ignore[operator]
    config = RunConfig.model_validate(values)
    progress = Progress(stream=io.StringIO())
    with (
        open_run(str(tmp_path / "run"), config, steps(config), progress) as run,
        pytest.raises(CannotRunError, match=name),
    ):
        run.follow()
    assert not run.folders


@pytest.mark.parametrize("section", ["base", "affinity", "masks", "predict"])
def test_a_crf_backend_that_is_not_installed_is_found_out_first(
    tmp_path: Path, section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmm_ray.pipeline.run.find_spec", lambda name: None)
    config = RunConfig.model_validate({section: {"backend": "pydensecrf"}})
    progress = Progress(stream=io.StringIO())
    with (
        open_run(str(tmp_path / "run"), config, steps(config), progress) as run,
        pytest.raises(CannotRunError, match=rf"{section}\.backend: pydensecrf is not installed"),
    ):
        run.follow()
    assert not run.folders


def test_an_empty_run_folder_is_named() -> None:
    assert "--run-dir is empty" in said("run", SHAPES, "--run-dir", "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--env", "FOO", "--", "true"), 2, "--env FOO: write it as KEY=VALUE"),
        (("--", "no-such-program"), 1, "cannot start no-such-program"),
    ],
)
def test_submitting_what_cannot_run(arguments: tuple[str, ...], code: int, message: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / "submit.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
