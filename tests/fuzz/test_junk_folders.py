"""Folders of anything: everything met is made, failed or left out, and the sum is right."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given

from pmm_ray.runtime.core import tables
from pmm_ray.sources.cams.cam_files import find_cams
from pmm_ray.sources.cams.cam_import import import_photographs
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.masks.mask_files import find_masks
from pmm_ray.sources.masks.mask_pairs import match_masks

from .junk import Item, junk, make
from .mutations import fuzz, ours


@fuzz
@given(junk)
def test_a_folder_of_photographs(items: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = f"{place}/root"
        Path(root).mkdir()
        there = make(root, items)
        report = ours(lambda: import_folder(root, f"{root}/out"))
        if report is None:
            return
        total = report.accounting
        assert total.found == there
        assert total.made == report.rows == tables.read_table(report.manifest.uri).num_rows
        assert total.failed == len(tables.read_errors(f"{root}/out/errors"))
        assert "\n".join(total.lines(root)).encode()


@fuzz
@given(junk, junk)
def test_cams_and_their_photographs(photographs: list[Item], cams: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as place:
        for name, items in (("photos", photographs), ("cams", cams)):
            Path(place, name).mkdir()
            make(f"{place}/{name}", items)
        listing = f"{place}/listing.parquet"
        found = ours(lambda: find_cams(f"{place}/cams", listing, trust_pickle=True))
        if found is None:
            return
        report = ours(lambda: import_photographs(f"{place}/photos", found, f"{place}/out"))
        if report is not None:
            assert report.accounting.made == report.rows
            assert report.accounting.failed == len(report.errors)


@fuzz
@given(junk, junk)
def test_masks_and_their_truth(masks: list[Item], truth: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as place:
        sides = []
        for name, items in (("masks", masks), ("truth", truth)):
            folder = f"{place}/{name}"
            Path(folder).mkdir()
            make(folder, items)
            sides.append(ours(lambda folder=folder: find_masks(folder, f"{folder}.parquet")))
        if None in sides:
            return
        listings = (f"{place}/m.parquet", f"{place}/t.parquet")
        pairs = match_masks(sides[0], sides[1], listings, None)
        assert set(pairs.masks.image_ids) == set(pairs.truth.image_ids) == set(pairs.image_ids)
        known = len(pairs.image_ids) + len(pairs.lacking) + len(pairs.unsure)
        assert known >= len(sides[0].files)
