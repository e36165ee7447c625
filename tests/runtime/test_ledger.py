"""What a folder holds: damage is found, strangers and doubles are resolved, nothing is guessed."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.index import part_files, read_parts
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.mapping.ledger import Ledger

IDS = [f"i{n}" for n in range(8)]


def row(image_id: str) -> dict[str, Any]:
    seed = int(image_id[1:])
    return {
        "image_id": image_id,
        "height": 4,
        "width": 4,
        "mask_png": np.random.default_rng(seed).bytes(60),
        "foreground": 0.5,
        "labels": [1, 2],
        "round": 0,
    }


def commit(folder: StageFolder, ids: list[str], failed: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a task does with a chunk, and what it says to the driver."""
    name = tables.chunk_name([*ids, *failed])
    size = error_size = 0
    if ids:
        size = tables.write_rows(
            tables.part_uri(folder.uri, name), [row(i) for i in ids], tables.MASKS
        )
    if failed:
        errors = [ErrorRow(i, folder.stage, "decode", "cut") for i in failed]
        error_size = tables.write_errors(folder.errors_uri, name, errors)
    said = {"part": name, "done": json.dumps(ids), "failed": json.dumps(failed)}
    return said | {"bytes": size, "error_bytes": error_size}


def on_disk(folder: StageFolder) -> list[dict[str, Any]]:
    """The rows of all part files, as somebody reads them who knows no index."""
    return [row for uri in part_files(folder.uri) for row in tables.read_table(uri).to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    return StageFolder.below(str(tmp_path), "make_masks", "00000000")


def test_what_tasks_say_and_what_the_folder_holds_agree(folder: StageFolder) -> None:
    commit(folder, IDS[:2])
    said = Ledger(folder, tables.MASKS)
    assert said.scan() == []
    said.add(commit(folder, IDS[2:4], failed=("i4",)))
    found = Ledger(folder, tables.MASKS)
    assert found.scan() == []
    for ledger in (said, found):
        assert ledger.uncommitted(IDS).to_pylist() == ["i5", "i6", "i7"]
        assert ledger.failed == {"i4"}
        places = ledger.index(IDS).locations()
        assert {i: tables.read_rows(uri, [n])[0] for i, (uri, n) in places.items()} == {
            i: row(i) for i in IDS[:4]
        }


def test_any_flipped_bit_is_found_or_harmless(folder: StageFolder) -> None:
    commit(folder, IDS)
    [part] = map(Path, part_files(folder.uri))
    data, whole = part.read_bytes(), tables.read_table(str(part)).to_pylist()
    found = 0
    for position in range(0, len(data), 5):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        part.write_bytes(broken)
        parts, damaged = read_parts(part_files(folder.uri), tables.MASKS)
        found += len(damaged)
        # a row that is lost runs again; one that is wrong would stay
        read = [] if damaged else tables.read_table(parts[0][0]).to_pylist()
        assert all(row in whole for row in read), position
    assert found


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts that are read."""
    names: list[str] = []
    original = tables.read_table

    def noted(uri: str, columns: Any = None) -> pa.Table:
        if "/part-" in uri:
            names.append(Path(uri).name)
        return original(uri, columns)

    monkeypatch.setattr(tables, "read_table", noted)
    return names


def killed(folder: StageFolder, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A run that wrote its journal after the second of its three chunks, and was killed."""
    said = [commit(folder, IDS[:3], ("i6",)), commit(folder, IDS[3:5]), commit(folder, ["i5"])]
    ledger = Ledger(folder, tables.MASKS)
    ledger.add(said[0])
    monkeypatch.setattr("pmm_ray.runtime.mapping.ledger._JOURNAL_SECONDS", -1.0)
    ledger.add(said[1])
    monkeypatch.setattr("pmm_ray.runtime.mapping.ledger._JOURNAL_SECONDS", 60.0)
    ledger.add(said[2])
    return said


def test_a_resume_reads_the_journal_and_no_part_that_it_speaks_of(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    said = killed(folder, monkeypatch)
    for resumed in (1, 2):
        ledger = Ledger(folder, tables.MASKS)
        assert ledger.scan() == []
        # the first resume writes down what the killed run had not; the second reads nothing
        assert read == [f"part-{said[2]['part']}.parquet"], resumed
        assert ledger.failed == {"i6"}
        assert ledger.uncommitted(IDS).to_pylist() == ["i7"]
        places = ledger.index(IDS).locations()
        assert {i: tables.read_rows(uri, [n])[0] for i, (uri, n) in places.items()} == {
            i: row(i) for i in IDS[:6]
        }


def test_a_part_that_changed_after_the_journal_is_read(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = killed(folder, monkeypatch)
    changed, gone = (Path(tables.part_uri(folder.uri, one["part"])) for one in said[:2])
    data = bytearray(changed.read_bytes())
    data[len(data) // 3] ^= 4
    changed.write_bytes(data)
    gone.unlink()
    Path(tables.part_uri(folder.errors_uri, said[0]["part"])).unlink()  # as --retry-errors does
    ledger = Ledger(folder, tables.MASKS)
    assert ledger.scan() == [str(changed)]
    assert ledger.failed == set()
    assert ledger.index(IDS).image_ids == ["i5"]


def test_a_damaged_journal_costs_only_time(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(folder, monkeypatch)
    [journal] = Path(folder.path("journal")).glob("*.parquet")
    journal.write_bytes(journal.read_bytes()[:50])
    ledger = Ledger(folder, tables.MASKS)
    assert ledger.scan() == []
    assert ledger.index(IDS).image_ids == IDS[:6]


def test_damaged_parts_and_litter_are_removed_and_their_images_are_due(folder: StageFolder) -> None:
    for image_id in IDS[:4]:
        commit(folder, [image_id])
    cut, noise, foreign, _ = map(Path, part_files(folder.uri))
    cut.write_bytes(cut.read_bytes()[:100])
    noise.write_bytes(bytes(500))
    tables.write_rows(str(foreign), [{"image_id": "i0"}], pa.schema([("image_id", pa.string())]))
    litter = Path(folder.path(".part-x.parquet.0badcafe.tmp"))
    litter.write_bytes(b"half")
    ledger = Ledger(folder, tables.MASKS)
    assert sorted(ledger.scan()) == sorted(map(str, (cut, noise, foreign)))
    assert len(ledger.uncommitted(IDS[:4])) == 3
    assert not litter.exists()


def test_error_rows_without_a_place_are_accepted(folder: StageFolder) -> None:
    """Runs of earlier versions wrote them so."""
    commit(folder, [], failed=("i1",))
    [part] = part_files(folder.errors_uri)
    old = tables.read_table(part).drop_columns(["host", "process"])
    tables.write_rows(part, old.to_pylist(), old.schema)
    ledger = Ledger(folder, tables.MASKS)
    assert ledger.scan() == []
    assert ledger.failed == {"i1"}


def test_a_part_that_is_gone_can_be_withdrawn(folder: StageFolder) -> None:
    ledger = Ledger(folder, tables.MASKS)
    counts = [commit(folder, [], failed=(image_id,)) for image_id in ("i1", "i2")]
    for said in counts:
        ledger.add(said)
    Path(tables.part_uri(folder.errors_uri, counts[0]["part"])).unlink()
    assert ledger.withdraw([said["part"] for said in counts], ["i1", "i2"]) == 2
    assert part_files(folder.errors_uri) == []


def test_a_disk_that_fails_costs_no_part(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(folder, IDS)

    def fails(uri: str, columns: object) -> pa.Table:
        raise OSError(errno.EIO, "Input/output error", uri)

    with monkeypatch.context() as patch:
        patch.setattr(tables, "read_table", fails)
        with pytest.raises(OSError, match="Input/output error"):
            Ledger(folder, tables.MASKS).scan()
    assert len(on_disk(folder)) == len(IDS)


@pytest.mark.parametrize("said", ["ACCESS_DENIED", "INVALID_OBJECT_STATE", "NOT_FOUND"])
def test_a_store_that_refuses_a_part_costs_none(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    commit(folder, IDS)

    def refused(uri: str, columns: object = None) -> pa.Table:
        raise OSError(f"When reading information for key '{uri}': AWS Error {said}: no")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "read_table", refused)
        with pytest.raises(OSError, match=said):
            Ledger(folder, tables.MASKS).scan()
    assert len(on_disk(folder)) == len(IDS)


def test_a_task_that_outlives_its_driver_leaves_no_double(folder: StageFolder) -> None:
    ledger = Ledger(folder, tables.MASKS)
    ledger.scan()
    ledger.add(commit(folder, IDS[:3]))
    ledger.add(commit(folder, IDS[3:]))
    commit(folder, IDS[2:5])  # cut the chunks otherwise, and told another driver
    ledger.settle()
    assert sorted(on_disk(folder), key=lambda r: r["image_id"]) == [row(i) for i in IDS]
    assert sorted(ledger.index(IDS).locations()) == IDS


def test_doubles_of_an_earlier_run_are_taken_out_of_their_parts(folder: StageFolder) -> None:
    commit(folder, IDS[:5])
    commit(folder, IDS[3:])
    commit(folder, IDS[4:6])
    ledger = Ledger(folder, tables.MASKS)
    assert ledger.scan() == []
    ledger.settle()
    assert sorted(on_disk(folder), key=lambda r: r["image_id"]) == [row(i) for i in IDS]
    places = ledger.index(IDS).locations()
    assert [tables.read_rows(*(uri, [n]))[0] for uri, n in places.values()] == [row(i) for i in IDS]


def test_a_row_wins_over_an_error_row(folder: StageFolder) -> None:
    commit(folder, [], failed=("i1",))
    commit(folder, ["i1"])
    ledger = Ledger(folder, tables.MASKS)
    ledger.scan()
    assert (ledger.failed, ledger.uncommitted(IDS[:2]).to_pylist()) == (set(), ["i0"])


def test_error_rows_of_images_that_went_well_when_they_ran_again_are_gone(
    folder: StageFolder,
) -> None:
    stale = commit(folder, ["i0"], failed=("i1",))  # its task died after the error row
    name = tables.part_uri(folder.uri, stale["part"])
    tables.write_rows(name, [row("i0"), row("i1")], tables.MASKS)
    commit(folder, [], failed=("i2", "i3"))
    commit(folder, ["i2"])
    commit(folder, [], failed=("i3", "i4"))  # of a task that outlived its driver
    commit(folder, [], failed=("i5",))
    ledger = Ledger(folder, tables.MASKS)
    ledger.scan()
    for _ in range(2):
        ledger.settle()
        failed = [row.image_id for row in tables.read_errors(folder.errors_uri)]
        assert failed == sorted(ledger.failed) == ["i3", "i4", "i5"]
        assert sorted(ledger.index(IDS).locations()) == IDS[:3]
