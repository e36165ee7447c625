"""The page of inputs says what the code does."""

from __future__ import annotations

from pathlib import Path

from pmm_ray.sources.describe import page

PAGE = Path(__file__).parents[2] / "docs/reference/inputs.md"


def test_the_page_is_that_of_the_code() -> None:
    assert PAGE.read_text() == page(), (
        "python -m pmm_ray.sources.describe > docs/reference/inputs.md"
    )
