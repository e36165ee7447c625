"""Where `pmm data import` and `shapes` write: never over what they did not make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.commands.data import import_dataset, make_dataset
from pmm_ray.config import RunConfig
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.rows.images import decode_mask

from .sources.coco_tree import annotation, box, entry, photo, write

MINE = b"of the user"
Said = Callable[[], str]


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Said:
    """What was printed since the last call."""
    return lambda: " ".join(" ".join(capfd.readouterr()).split())


def imported(source: str, root: Path, out: Path, **data: str) -> int:
    config = RunConfig.model_validate({"data": {"source": source, "root": str(root)} | data})
    return import_dataset(config, str(out), ["train"])


def photographs(root: Path) -> None:
    for name in "ab":
        photo(root / f"images/{name}.jpg")
    (root / "labels.csv").write_text("image_id,labels\na,dog\nb,dog\n")


def masks_with_gaps(root: Path) -> dict[Path, bytes]:
    """Masks of the ids 0, 2 and 4, and the class list that says so."""
    (root / "classes.txt").write_text("0 background\n2 cat\n4 dog\n")
    (root / "masks").mkdir()
    for name in "ab":
        values = np.zeros((20, 30), np.uint8)
        values[:, 15:] = 4
        Image.fromarray(values).save(root / f"masks/{name}.png")
    return {path: path.read_bytes() for path in (root / "masks").iterdir()}


def objects(root: Path) -> None:
    """Two objects that overlap, the smaller one first."""
    photo(root / "a.jpg")
    parts = [annotation(1, 1, [box(5, 5, 4, 4)]), annotation(1, 2, [box(0, 0, 30, 20)])]
    kinds = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    write(root / "annotations.json", [entry(1, "a.jpg")], parts, kinds)


def test_masks_of_the_user_are_not_written_anew(tmp_path: Path, said: Said) -> None:
    photos = tmp_path / "photos"
    photographs(photos)
    before = masks_with_gaps(photos)
    assert imported("folder", photos, photos) == 1
    text = said()
    assert f"{photos} holds files that this command did not make, such as masks" in text
    assert "choose another folder" in text
    assert {path: path.read_bytes() for path in before} == before
    assert not (photos / ".pmm-import").exists()
    for _ in range(2):
        assert imported("folder", photos, tmp_path / "out") == 0
        mask = decode_mask((tmp_path / "out/masks/a.png").read_bytes())
        assert np.unique(mask).tolist() == [0, 2]


def test_a_root_is_its_own_out_until_its_masks_would_be_written_anew(
    tmp_path: Path, said: Said
) -> None:
    photographs(tmp_path)
    for _ in range(2):
        assert imported("folder", tmp_path, tmp_path) == 0
        assert "hidden" not in said()
    before = masks_with_gaps(tmp_path)
    assert imported("folder", tmp_path, tmp_path) == 1
    assert f"{tmp_path}/masks is where such masks go: choose another --out" in said()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("held", ["objects/cat.txt", "masks/a.png", "manifest.parquet"])
def test_what_an_import_would_write_is_refused_and_kept(
    tmp_path: Path, said: Said, held: str
) -> None:
    objects(tmp_path)
    mine = tmp_path / held
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(MINE)
    assert imported("coco", tmp_path, tmp_path) == 1
    assert f"such as {held.split('/')[0]}" in said()
    assert mine.read_bytes() == MINE
    assert not (tmp_path / "errors").exists()


def test_an_import_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photographs(photos)
    masks_with_gaps(photos)
    with monkeypatch.context() as patch:

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("pmm_ray.sources.importing.importer.write_manifest", stop)
        assert imported("folder", photos, out) == 130
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["a.png", "b.png"]
    assert imported("folder", photos, out) == 0
    assert not (out / ".pmm-import").exists()
    # of another source: what is there is not its own
    objects(tmp_path / "coco")
    said()
    assert imported("coco", tmp_path / "coco", out) == 1
    assert "that this command did not make" in said()


def test_the_synthetic_data_set_overwrites_itself_alone(tmp_path: Path, said: Said) -> None:
    photos, made = tmp_path / "photos", {"images": 4, "classes": 2, "size": 48, "seed": 0}
    photographs(photos)
    labels = (photos / "labels.csv").read_bytes()
    for manifest in (False, True):
        assert make_dataset(str(photos), **made) == 1
        assert "that this command did not make" in said()
        assert (photos / "labels.csv").read_bytes() == labels
        if not manifest:
            assert imported("folder", photos, photos) == 0
    for _ in range(2):
        assert make_dataset(str(tmp_path / "out"), **made) == 0
        assert not (tmp_path / "out/.pmm-import").exists()


def test_drawn_masks_are_of_the_rule_that_was_asked_for(
    tmp_path: Path, ray_session: ClusterResources
) -> None:
    objects(tmp_path)
    drawn = tmp_path / "masks/a.png"
    for overlap, value in (("last", 2), ("smallest", 1), ("last", 2)):
        assert imported("coco", tmp_path, tmp_path, overlap=overlap) == 0
        assert decode_mask(drawn.read_bytes())[6, 6] == value
    written = drawn.stat().st_mtime_ns
    assert imported("coco", tmp_path, tmp_path, overlap="last") == 0
    assert drawn.stat().st_mtime_ns == written
