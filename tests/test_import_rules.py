"""The house's floors: imports only look down, and a few libraries have one door each."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# a module imports its own package, lower floors, and its neighbours on floor 3
FLOORS = {
    "latticecrf": 0,
    "labels": 0,
    "method": 1,
    "config": 2,
    "runtime": 3,
    "sources": 3,
    "nets": 3,
    "stages": 4,
    "report": 4,
    "pipeline": 5,
    "commands": 6,
    "cli": 7,
    "jobs": 8,
}
ROOMS = {
    "runtime": ("core", "cluster", "mapping", "rows", "training"),
    "sources": ("reading", "importing", "masks", "labels", "datasets", "cams"),
}
"""Of a package: each imports only those before it."""
NEIGHBOURS_FLOOR = 3
MM_STACK = {"mmseg", "mmcv", "mmengine"}
MM_DOORS = {
    "pmm_ray/nets/segmenter.py",
    "pmm_ray/nets/segmenter_modules.py",
    "pmm_ray/nets/segmenter_source.py",
    "pmm_ray/nets/segmenter_transform.py",
}
FORBIDDEN = {
    "labels": {"ray", "torch", "pyarrow", "PIL", "pydantic"},
    "method": {"ray", "pyarrow", "PIL", "pathlib", "yaml", "pydantic"},
    "config": {"ray", "torch", "numba", "cv2", "pyarrow", "numpy"},
}
# the engine is a library of its own
ENGINE_KNOWS = sys.stdlib_module_names | {"latticecrf", "numpy", "numba", "llvmlite", "pydensecrf"}
MOST_LINES = 400
PHOTOGRAPHS = {".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".heic"}


def imported(path: Path, root: Path) -> Iterator[str]:
    """Every module a file imports, at its top, in its functions and for type checking."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # `from pmm_ray import x` names the module x itself
            yield from (f"{module}.{name.name}" for name in node.names)


def room_below(own: str, module: str) -> bool:
    """Whether a room may import a module, `PACKAGE.ROOM...`, of its own package."""
    package, _, rest = module.partition(".")
    rooms, other = ROOMS[package], rest.split(".")[0]
    # files beside the rooms are above them
    return own not in rooms or (other in rooms and rooms.index(other) <= rooms.index(own))


def violations(root: Path) -> list[str]:
    """One line for every import that breaks a rule."""
    found = []
    engine = set(root.glob("latticecrf/**/*.py")) - set(root.glob("latticecrf/tests/**/*.py"))
    for path in [*sorted(engine), *root.glob("pmm_ray/**/*.py"), *root.glob("jobs/*.py")]:
        file = path.relative_to(root).as_posix()
        parts = path.relative_to(root).with_suffix("").parts
        own = parts[1] if parts[0] == "pmm_ray" else parts[0]
        if own == "__init__":
            own = "labels"  # the package itself imports nothing of ours
        if own not in FLOORS:
            found.append(f"{file}: on no floor; add it to FLOORS")
            continue
        for module in imported(path, root):
            top, _, rest = module.partition(".")
            if top in MM_STACK and file not in MM_DOORS:
                found.append(f"{file} imports {module}; only nets/segmenter*.py may")
            if own == "latticecrf":
                if top not in ENGINE_KNOWS:
                    found.append(f"{file} imports {module}; it must work without")
                continue
            if top in FORBIDDEN.get(own, set()):
                found.append(f"{file} imports {module}, which {own} must not know")
            other = rest.split(".")[0] if top == "pmm_ray" else top
            if own == other and own in ROOMS and not room_below(parts[2], rest):
                found.append(f"{file} imports {module}: its room is not below {parts[2]}")
            if other not in FLOORS or other == own:
                continue
            lower = FLOORS[other] < FLOORS[own]
            if not lower and not FLOORS[other] == FLOORS[own] == NEIGHBOURS_FLOOR:
                found.append(f"{file} imports {module}: {other} is not below {own}")
    return found


def planted(root: Path, file: str, line: str) -> list[str]:
    """The violations in a house of one file."""
    (root / file).parent.mkdir(parents=True)
    (root / file).write_text(line + "\n")
    return violations(root)


def test_imports_only_look_down() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pmm_ray/labels.py", "from pmm_ray.method.masks import argmax_mask"),
        ("pmm_ray/method/cams.py", "import ray"),
        ("pmm_ray/method/cams.py", "from pathlib import Path"),
        ("latticecrf/kernels/cache.py", "import pyarrow"),
        ("latticecrf/lattice/lattice.py", "from pmm_ray.method import cams"),
        ("pmm_ray/method/cams.py", "def f():\n    from pmm_ray.runtime import storage"),
        ("pmm_ray/method/masks.py", "from ..config import CrfConfig"),
        ("pmm_ray/config/load.py", "import torch"),
        ("pmm_ray/config/load.py", "from pmm_ray.stages.make_cams import run"),
        ("pmm_ray/sources/datasets/folder.py", "from pmm_ray.stages import make_masks"),
        ("pmm_ray/stages/make_cams.py", "from pmm_ray import pipeline"),
        ("pmm_ray/stages/make_cams.py", "from pmm_ray.pipeline.run import Step"),
        ("pmm_ray/pipeline/steps.py", "from pmm_ray.commands import run"),
        ("pmm_ray/commands/run.py", "from pmm_ray.cli import app"),
        ("pmm_ray/runtime/core/stage.py", "from pmm_ray.runtime.cluster import connect"),
        ("pmm_ray/sources/reading/names.py", "from pmm_ray.sources.labels import lists"),
        ("pmm_ray/sources/reading/names.py", "from pmm_ray.sources.download import DATASETS"),
        ("pmm_ray/runtime/mapping/chunks.py", "from pmm_ray.runtime.training.job import poly"),
        ("pmm_ray/scoring.py", "import json"),
        ("pmm_ray/stages/make_cams.py", "import mmseg.models"),
        ("pmm_ray/nets/segmenter_other.py", "import mmseg.models"),
        ("pmm_ray/pipeline/steps.py", "from pmm_ray.cli import app"),
        ("pmm_ray/extra/thing.py", "import json"),
    ],
)
def test_the_checker_sees_a_planted_violation(tmp_path: Path, file: str, line: str) -> None:
    assert len(planted(tmp_path, file, line)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pmm_ray/nets/segmenter.py", "import mmseg"),
        ("pmm_ray/runtime/rows/cams.py", "from pmm_ray.runtime.core.manifest import Manifest"),
        ("pmm_ray/stages/make_masks.py", "from latticecrf import DenseCrf\nimport ray"),
        ("jobs/run_pipeline.py", "from pmm_ray.cli import main"),
    ],
)
def test_the_checker_allows_what_the_house_allows(tmp_path: Path, file: str, line: str) -> None:
    assert planted(tmp_path, file, line) == []


def tracked() -> list[Path]:
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, or git is not installed")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_no_python_file_is_long() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked()
        if path.suffix == ".py" and path.exists()
    }
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_photograph_is_tracked() -> None:
    assert [path for path in tracked() if path.suffix.lower() in PHOTOGRAPHS] == []
