"""The drop-in under pydensecrf's name: in one process, in its children, and as the README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
# what a stranger's program does, with a process of `spawn` and one of its own
STRANGER = """
import multiprocessing, subprocess, sys
from pathlib import Path
import numpy as np
import pydensecrf.densecrf as dcrf
import pydensecrf.utils
from pydensecrf.utils import unary_from_softmax
from neighbour import SIZE

def work(queue):
    queue.put(dcrf.__name__)

if __name__ == "__main__":
    height, width = SIZE
    crf = dcrf.DenseCRF2D(width, height, 2)
    crf.setUnaryEnergy(unary_from_softmax(np.full((2, height, width), 0.5)))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    print(np.argmax(crf.inference(2), axis=0).shape, sys.argv[1:], Path(__file__).name)
    queue = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(queue,))
    process.start()
    print(queue.get())
    process.join()
    code = "import pydensecrf.densecrf as d; print(d.__name__)"
    print(subprocess.check_output([sys.executable, "-c", code], text=True).strip())
    sys.exit(5)
"""
# what goes on when its last line has run
QUEUED = """
import atexit, pickle, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
import pydensecrf.densecrf as dcrf

class Mine:
    field: int

def work(folder, name, wait=0):
    time.sleep(wait)
    pickle.dumps(Mine())
    (Path(folder) / name).write_text(f"{dcrf.__name__} {Mine.__annotations__['field']}")

if __name__ == "__main__":
    folder, method = sys.argv[1:]
    assert Path(__file__).is_absolute() and __builtins__.len is len
    pool = ProcessPoolExecutor(2, get_context(method))
    for number in range(8):
        pool.submit(work, folder, str(number))
    threading.Thread(target=work, args=(folder, "thread", 0.5)).start()
    atexit.register(work, folder, "exit")
"""


def environment() -> dict[str, str]:
    """The package can be imported, whether or not it is installed."""
    return os.environ | {"PYTHONPATH": str(PACKAGE.parent)}


def test_a_strangers_script_runs_unchanged(tmp_path: Path) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "script.py").write_text(STRANGER)
    (folder / "neighbour.py").write_text("SIZE = 6, 8\n")
    answer = subprocess.run(
        [sys.executable, "-m", "latticecrf", "program/script.py", "--flag", "value"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    name = "latticecrf.pydensecrf.densecrf"
    expected = ["(48,) ['--flag', 'value'] script.py", name, name]
    assert answer.stdout.splitlines() == expected, answer.stderr
    assert answer.returncode == 5


# With `spawn` Python itself does not find what a folder or a zip file defines.
@pytest.mark.parametrize(
    ("program", "method"),
    [
        ("app/main.py", "fork"),
        ("app/main.py", "spawn"),
        ("-m app.main", "fork"),
        ("-m app.main", "spawn"),
        ("app", "fork"),
        ("app.zip", "fork"),
    ],
)
def test_what_is_queued_is_done_when_the_last_line_has_run(
    program: str, method: str, tmp_path: Path
) -> None:
    for folder in ("app", "out"):
        (tmp_path / folder).mkdir()
    for name in ("__init__", "main", "__main__"):
        (tmp_path / "app" / f"{name}.py").write_text(QUEUED if "main" in name else "")
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", QUEUED)
    answer = subprocess.run(
        [sys.executable, "-m", "latticecrf", *program.split(), "out", method],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    text = "latticecrf.pydensecrf.densecrf <class 'int'>"
    assert found == dict.fromkeys([*map(str, range(8)), "thread", "exit"], text)


def test_a_module_runs_as_python_runs_it(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "__init__.py").write_text("")
    (app / "neighbour.py").write_text("SIZE = 6, 8\n")
    script = "import sys\nfrom .neighbour import SIZE\nprint(sys.argv, __package__, SIZE)\n"
    (app / "__main__.py").write_text(script)
    commands = [
        [sys.executable, *engine, "-m", "app", "--flag"] for engine in ([], ["-m", "latticecrf"])
    ]
    printed = [
        subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment())
        for command in commands
    ]
    assert printed[0].stdout == printed[1].stdout != "", printed[1].stderr


def test_a_module_whose_own_import_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("import a_module_that_is_missing")
    answer = subprocess.run(
        [sys.executable, "-m", "latticecrf", "-m", "app.main"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert "No module named 'a_module_that_is_missing'" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["absent.py"], 2), (["--help"], 0), (["-m"], 2), (["-m", "absent.main"], 2)],
)
def test_usage(arguments: list[str], code: int) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "latticecrf", *arguments],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert answer.returncode == code
    assert "latticecrf" in answer.stderr


def test_a_safe_path_stays_as_it_is(tmp_path: Path) -> None:
    modules, program = tmp_path / "modules", tmp_path / "program"
    for folder in (modules, program):
        folder.mkdir()
        (folder / "neighbour.py").write_text(f"PLACE = {folder.name!r}\n")
    (program / "script.py").write_text("import neighbour; print(neighbour.PLACE)")
    # The first entry of a safe path is the user's.
    paths = os.pathsep.join([str(modules), str(PACKAGE.parent)])
    for safe, place in (("1", "modules"), ("", "program")):
        answer = subprocess.run(
            [sys.executable, "-m", "latticecrf", "program/script.py"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": safe},
        )
        assert answer.stdout.strip() == place, answer.stderr


def test_the_reference_is_not_the_drop_in_itself() -> None:
    code = """
import numpy as np
import latticecrf
latticecrf.install()
latticecrf.DenseCrf(np.zeros((4, 5, 3), np.uint8), latticecrf.CrfParameters.ppmg(), "pydensecrf")
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert "ModuleNotFoundError: latticecrf.install() has put" in answer.stderr


def test_the_script_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    script, printed = re.search(r"```python\n(.*?)```\s+prints `(.*?)`", text, re.DOTALL).groups()  # type: ignore[union-attr]
    (tmp_path / "readme.py").write_text(script)
    answer = subprocess.run(
        [sys.executable, str(tmp_path / "readme.py")],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert answer.stdout.strip() == printed, answer.stderr


def test_importing_the_package_imports_no_numba() -> None:
    code = "import latticecrf, sys; print({'numba', 'numpy'} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert answer.stdout.strip() == "set()"
