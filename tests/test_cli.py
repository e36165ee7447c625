"""The command as a user types it: quick, and its exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from pmm_ray.cli.app import app, data_app

REPOSITORY = Path(__file__).resolve().parents[1]


def pmm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pmm_ray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_help_lists_the_commands() -> None:
    done = pmm("--help")
    assert done.returncode == 0
    for command in ("run", "predict", "report", "doctor", "data"):
        assert command in done.stdout


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys, pmm_ray.cli; "
        "print([m for m in ('torch', 'ray', 'numba', 'cv2', 'pyarrow', 'mmseg', 'pydantic') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_option_is_a_path() -> None:
    """Typer's `Path` makes `s3:/bucket` of `s3://bucket`, a folder of this machine."""

    for command in (*app.registered_commands, *data_app.registered_commands):
        hints = get_type_hints(command.callback)
        used = {of for hint in hints.values() for of in (hint, *get_args(hint))}
        assert Path not in used


def test_a_mistyped_key_is_answered_with_the_nearest_known_one() -> None:
    done = pmm("run", str(REPOSITORY / "recipes" / "shapes.yaml"), "--set", "masks.alfa=3")
    assert done.returncode == 1
    assert "masks.alpha" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("run", "absent.yaml"), 1, "cannot read the recipe"),
        (("run", "recipes/shapes.yaml", "--only", "make_tea"), 1, "no stage is called 'make_tea'"),
        (("run", "recipes/shapes.yaml", "--only", "make_cams", "--from", "x"), 2, "--only"),
        (("brew",), 2, "No such command"),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], code: int, text: str) -> None:
    arguments = tuple(str(REPOSITORY / a) if a.startswith("recipes/") else a for a in arguments)
    done = pmm(*arguments)
    assert done.returncode == code
    assert text in done.stderr


def test_a_job_takes_the_options_of_run() -> None:
    job = [sys.executable, str(REPOSITORY / "jobs" / "run_pipeline.py")]
    recipe = ["--recipe", str(REPOSITORY / "recipes" / "shapes.yaml")]
    options = {"--only": 1, "--onl": 2}
    for option, code in options.items():
        done = subprocess.run([*job, *recipe, option, "make_tea"], capture_output=True, text=True)
        assert done.returncode == code
        assert ("no stage is called 'make_tea'" in done.stderr) == (code == 1)


def test_data_shapes_and_import_folder(tmp_path: Path) -> None:
    made = pmm("data", "shapes", str(tmp_path / "a"), "--images", "6", "--size", "48")
    assert made.returncode == 0, made.stderr
    assert "6 images" in made.stdout
    (tmp_path / "a" / "images" / "broken.jpg").write_bytes(b"")
    done = pmm("data", "import", "folder", str(tmp_path / "a"), "--out", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    assert "1 decode (broken: the file is empty" in done.stdout
