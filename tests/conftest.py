"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the shared development photographs; tests that need it skip without it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("PMM_SHARED", default))
    if not (folder / "data").is_dir():
        pytest.skip("shared photographs not found: set PMM_SHARED")
    return folder
