"""Fixtures of the networks' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .golden import Golden


@pytest.fixture(scope="session")
def golden(shared: Path) -> Golden:
    """What the public networks give for deterministic weights and inputs."""
    return Golden(shared / "data" / "golden")
