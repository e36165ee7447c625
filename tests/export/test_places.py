"""Where `pmm export` writes: into folders that are new or its own, and no others."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pmm_ray.commands.export import export_run
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.index import read_all, scan_parts, write_index

from .runs import make_run

FORMATS = ("voc", "coco", "mmseg", "yolo", "hf")


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("voc", "SegmentationClass/shapes-00000.png"),
        ("coco", "instances_train.json"),
        ("mmseg", "splits/train.txt"),
        ("yolo", "labels/train/shapes-00000.txt"),
        ("hf", "data/train-00000-of-00002.parquet"),
        ("voc", "README"),
    ],
)
def test_a_folder_of_the_user_is_refused_and_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, held: str
) -> None:
    make_run(tmp_path / "run", "make_masks")
    out = tmp_path / "out"
    (out / held).parent.mkdir(parents=True)
    (out / held).write_bytes(b"of the user")
    assert export_run(str(tmp_path / "run"), str(out), name) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert f"{out} holds files that this command did not make" in said
    assert f"such as {held.split('/')[0]}" in said
    assert "choose another folder" in said
    assert [path for path in out.rglob("*") if path.is_file()] == [out / held]
    assert (out / held).read_bytes() == b"of the user"


def test_an_export_may_be_repeated_in_any_format(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "make_masks", "predict_masks-r1")
    out = tmp_path / "out"
    out.mkdir()  # an empty one is as good as none
    # what a process left that was killed while it wrote the marker
    (out / "..pmm-export.1234abcd.tmp").write_bytes(b"")
    for name in (*FORMATS, *FORMATS):
        assert export_run(str(tmp_path / "run"), str(out), name) == 0
    assert export_run(str(tmp_path / "run"), str(out), "voc", "make_masks") == 0


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def withdraw(run: Path) -> None:
    """Take the held-out images, and one of training, out of a run's masks."""
    manifest = tables.read_table(str(run / "data/manifest.parquet")).to_pylist()
    train = [row["image_id"] for row in manifest if row["split"] == "train"]
    folder = run / "make_masks-00000000"
    rows = read_all(str(folder)).to_pylist()
    kept = [row for row in rows if row["image_id"] in train[1:]]
    tables.write_rows(str(folder / "part-0.parquet"), kept, tables.MASKS)
    write_index(str(folder), scan_parts(str(folder))[0])


@pytest.mark.parametrize(
    ("earlier", "later"), [*((name, name) for name in FORMATS), ("mmseg", "yolo")]
)
def test_what_an_earlier_export_wrote_and_this_one_does_not_is_deleted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], earlier: str, later: str
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    make_run(run, "make_masks")
    assert export_run(str(run), str(out), earlier) == 0
    of_the_user = [out / "images/train/mine.jpg", out / "labels/train/mine.txt", out / "notes"]
    for path in of_the_user:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"of the user")
    withdraw(run)
    assert export_run(str(run), str(tmp_path / "new"), later) == 0
    assert "did not write" not in capfd.readouterr().err
    assert export_run(str(run), str(out), later) == 0
    kept = {str(path.relative_to(out)) for path in of_the_user}
    assert files(out) == files(tmp_path / "new") | kept
    said = " ".join(capfd.readouterr().err.split())
    if later == "yolo":
        assert f"2 files are in its folders that this export did not write, such as {out}" in said


def test_an_export_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", "make_masks")
    out = tmp_path / "out"
    write = storage.write_bytes

    def stop(uri: str, data: bytes) -> None:
        write(uri, data)
        if "SegmentationClass" in uri:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", stop)
        assert export_run(str(tmp_path / "run"), str(out), "voc") == 130
    assert list((out / "SegmentationClass").iterdir())
    assert export_run(str(tmp_path / "run"), str(out), "voc") == 0
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", stop)
        assert export_run(str(tmp_path / "run"), str(out), "voc") == 130
    assert export_run(str(tmp_path / "run"), str(out), "hf") == 0
    assert not list((out / "SegmentationClass").iterdir())


@pytest.fixture
def twice(tmp_path: Path) -> tuple[Path, Path]:
    """A run that is exported, and the folder of its photographs."""
    make_run(tmp_path / "run", "make_masks")
    return tmp_path / "out", tmp_path / "run/data"


@pytest.mark.parametrize("name", ["yolo", "hf", "mmseg"])
def test_photographs_that_are_away_leave_an_earlier_export_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], twice: tuple[Path, Path], name: str
) -> None:
    out, photographs = twice
    assert export_run(str(tmp_path / "run"), str(out), name) == 0
    good = {path: (out / path).read_bytes() for path in files(out) - {".pmm-export"}}
    (photographs / "images").rename(photographs / "away")
    for _ in range(2):
        assert export_run(str(tmp_path / "run"), str(out), name) == 1
        assert "pmm: 0 of 8 images, the first reason" in capfd.readouterr().err
        assert files(out) == {*good, ".pmm-export", "errors/part-export.parquet"}
        assert {path: (out / path).read_bytes() for path in good} == good
    (photographs / "away").rename(photographs / "images")
    assert export_run(str(tmp_path / "run"), str(out), name) == 0
    assert files(out) == {*good, ".pmm-export"}


@pytest.mark.parametrize("name", ["yolo", "mmseg"])
def test_files_of_an_image_that_fails_this_time_stay(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], twice: tuple[Path, Path], name: str
) -> None:
    out, photographs = twice
    assert export_run(str(tmp_path / "run"), str(out), name) == 0
    before = files(out)
    gone = next(iter(sorted((photographs / "images").iterdir())))
    gone.rename(tmp_path / gone.name)
    for _ in range(2):  # the second time they are still known to be of an export
        capfd.readouterr()
        assert export_run(str(tmp_path / "run"), str(out), name) == 0
        said = " ".join(capfd.readouterr().err.split())
        assert f"{out}: kept 2 files of an earlier export, of images that failed in this" in said
        assert f"/{gone.stem}." in said
        assert "did not write" not in said
        assert files(out) == {*before, "errors/part-export.parquet"}
    # it stays only where it was
    moved = {"train": "val", "val": "train"}
    manifest = photographs / "manifest.parquet"
    table = tables.read_table(str(manifest))
    other = [moved[s] if i == gone.stem else s for i, s in zip(*ids_and_splits(table), strict=True)]
    position = table.column_names.index("split")
    table = table.set_column(position, table.schema.field("split"), pa.array(other, pa.string()))
    manifest.write_bytes(tables.to_bytes(table))
    assert export_run(str(tmp_path / "run"), str(out), name) == 0
    assert not [path for path in files(out) if gone.stem in path]


def ids_and_splits(table: pa.Table) -> tuple[list[str], list[str]]:
    return table.column("image_id").to_pylist(), table.column("split").to_pylist()


def test_masks_of_pmm_predict_are_exported(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "predict_masks")
    assert export_run(str(tmp_path / "run"), str(tmp_path / "out"), "voc") == 0
    assert len(list((tmp_path / "out" / "SegmentationClass").iterdir())) == 8
