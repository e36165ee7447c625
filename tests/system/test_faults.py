"""Real processes are killed and real disks filled: the masks table ends up the same.

The faults themselves are those of `benchmarks/faults.py`, which also makes the table in
docs/reference/reliability.md from them; those of links and clocks are in test_hosts.py.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
faults = importlib.import_module("faults")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with contextlib.ExitStack() as opened:
        yield faults.Bench(tmp_path_factory.mktemp("faults"), opened)


@pytest.mark.parametrize("name", sorted(set(faults.FAULTS) - set(faults.LINKS)))
def test_the_table_is_that_of_an_undisturbed_run(bench: Any, name: str) -> None:
    if name == "full_disk" and not faults.can_mount():
        pytest.skip("only root may mount a small disk")
    outcome = faults.FAULTS[name](bench)
    assert outcome.same_table
    assert outcome.again <= faults.MADE_AGAIN.get(name, 0)
