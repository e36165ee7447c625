"""The nodes that system tests start: one that Ray gave up is started again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import conftest
from .conftest import RayNodes, free_port

# as Ray 2.60 on a busy machine: it says that it gave up, and stays
RAY = """#!/bin/sh
if [ -e {folder}/tried ]; then touch {folder}/up; exec sleep 100; fi
touch {folder}/tried
echo 'Exception: The current node timed out during startup. This could happen'
exec sleep 100
"""


class Nodes(RayNodes):
    def alive(self) -> int:
        return 1 + (self.folder / "up").exists()


@pytest.mark.timeout(60)
def test_a_start_that_ray_gave_up_is_ended_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "nodes"
    folder.mkdir()
    ray = tmp_path / "ray"
    ray.write_text(RAY.format(folder=folder))
    ray.chmod(0o755)
    monkeypatch.setattr(conftest, "RAY", str(ray))
    nodes = Nodes(folder, free_port(), free_port(), "token")
    try:
        nodes.start_worker("--num-cpus=1")
        [process] = nodes.processes
        assert nodes.alive() == 2
        started = list(nodes.log_of)
        assert len(started) == 2
        assert process.pid == started[1]
        with pytest.raises(ProcessLookupError):
            os.kill(started[0], 0)
    finally:
        nodes.stop()
