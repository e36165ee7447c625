"""Images read by tasks of their own: in order, a few at a time, errors in their places."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.mapping.read_ahead import read_ahead

pytestmark = pytest.mark.usefixtures("pickled_by_value")


class Reader:
    """Makes images up, and leaves a file for each that it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, row: Mapping[str, Any]) -> NDArray[np.uint8]:
        (self.folder / str(row["n"])).touch()
        if row["n"] == 2:
            raise RowError("decode", "broken", "2.jpg")
        return np.full((2, 3, 3), row["n"], np.uint8)


def check(found: list[Any]) -> None:
    errors = [n for n, image in enumerate(found) if isinstance(image, RowError)]
    assert errors == [2]
    assert (found[2].kind, found[2].message, found[2].uri) == ("decode", "broken", "2.jpg")
    assert [int(image.max()) for n, image in enumerate(found) if n != 2] == [0, 1, 3, 4, 5, 6, 7]


ROWS = [{"n": n} for n in range(8)]


def test_without_ray_images_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    images = read_ahead(ROWS, Reader(tmp_path), ahead=0)
    next(images)
    assert [file.name for file in tmp_path.iterdir()] == ["0"]
    check([np.zeros((2, 3, 3), np.uint8), *images])


@pytest.mark.parametrize("ahead", [1, 3])
def test_tasks_read_so_many_images_ahead_and_no_more(
    ray_session: ClusterResources, tmp_path: Path, ahead: int
) -> None:
    images = read_ahead(ROWS, Reader(tmp_path), ahead=ahead)
    first = next(images)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 1 + ahead and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {file.name for file in tmp_path.iterdir()} == {str(n) for n in range(1 + ahead)}
    check([first, *images])
