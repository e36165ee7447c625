"""Images that a training cannot use are counted without a listing for each of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.training import feed
from pmm_ray.runtime.training.loader import Batch


def bad(name: str) -> ErrorRow:
    return ErrorRow(name, "stage", "decode", "cut")


def feed_of(folder: Path, images: int, budget: int) -> tuple[Any, list[int]]:
    """A feed of batches with one bad image each, and what its reporter heard."""
    told: list[int] = []
    job: Any = SimpleNamespace(stage="stage", errors_uri=str(folder), error_budget=budget)
    own = feed.Feed(job, SimpleNamespace(failed=SimpleNamespace(remote=told.append)))
    own.begin(Batch(torch.ones(1), torch.ones(1), (bad(f"own-{i}"),)) for i in range(images))
    return own, told


def test_listings_do_not_grow_with_the_bad_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, listings = storage.list_files, []

    def list_files(*arguments: Any, **options: Any) -> list[str]:
        listings.append(arguments)
        return whole(*arguments, **options)

    monkeypatch.setattr(storage, "list_files", list_files)
    monkeypatch.setattr(feed, "_FEW", 5)
    monkeypatch.setattr(feed, "_LIST_SECONDS", 3600.0)
    own, told = feed_of(tmp_path, 60, 50)
    while own.next() is not None:
        pass
    assert str(own.problem) == "stage: 51 images cannot be used"
    assert told == [1, 2, 3, 4, 5, 51]
    assert len(listings) == len(told)


def test_rows_of_other_workers_are_counted_soon_though_no_image_of_its_own_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_FEW", 0)
    own, told = feed_of(tmp_path, 2, 3)
    own.next()
    for name in "abc":
        tables.write_errors(str(tmp_path), name, [bad(name)])
    own.next()
    assert own.problem is None
    own.begin(iter([Batch(torch.ones(1), torch.ones(1), ())] * 2))
    monkeypatch.setattr(feed, "_LIST_SECONDS", 0.0)
    own.next()
    assert str(own.problem) == "stage: 5 images cannot be used"
    assert told == [1, 5]
