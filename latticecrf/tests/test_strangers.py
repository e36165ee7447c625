"""Scripts as public programs write them, unchanged, on pydensecrf and on `python -m latticecrf`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).parent / "strangers"
# the package can be imported, whether or not it is installed
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_a_script_gives_the_same_on_both(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pydensecrf.densecrf")
    script = str(SCRIPTS / f"{name}.py")
    results: list[Any] = []
    for engine in ([], ["-m", "latticecrf"]):
        out = tmp_path / f"{len(results)}.npy"
        command = [sys.executable, *engine, script, str(out)]
        answer = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        assert answer.returncode == 0, answer.stderr
        results.append(np.load(out))
    theirs, ours = results
    assert ours.shape == theirs.shape
    if theirs.dtype == np.uint8:
        assert (ours == theirs).mean() > 0.999
    else:
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
