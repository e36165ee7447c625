from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.manifest import manifest_hash
from pmm_ray.runtime.rows.images import decode_mask, read_image
from pmm_ray.sources.datasets import shape_images, shapes
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.datasets.shape_images import draw
from pmm_ray.sources.datasets.shapes import CLASS_NAMES, make_shapes


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_data_set_is_complete_and_exact(tmp_path: Path) -> None:
    report = make_shapes(str(tmp_path), images=24, size=64, classes=5, seed=3)
    assert (report.rows, report.errors, report.total) == (24, (), 24)
    manifest = report.manifest
    assert manifest.label_space.names == ("background", *CLASS_NAMES[:5])
    assert manifest.splits == {"train": 18, "val": 6}
    assert manifest.ground_truth == manifest.splits
    assert tables.read_errors(str(tmp_path / "errors")) == []
    seen: Counter[int] = Counter()
    sizes = set()
    for row in tables.read_table(manifest.uri).to_pylist():
        assert row["uri"] == f"images/{row['image_id']}.jpg"
        image = read_image(manifest.locate(row["uri"]), apply_exif=manifest.apply_exif)
        mask = decode_mask(Path(manifest.locate(row["ground_truth_uri"])).read_bytes())
        assert image.shape == (row["height"], row["width"], 3)
        assert mask.shape == image.shape[:2]
        assert row["labels"] == np.unique(mask[mask > 0]).tolist()
        seen.update(row["labels"])
        sizes.add(mask.shape)
    assert set(seen) == {1, 2, 3, 4, 5}
    assert len(sizes) > 10


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_shapes(str(tmp_path / name), images=6, size=48, seed=1)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_seed_and_the_version_are_part_of_the_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hash_of(seed: int) -> str:
        return manifest_hash(make_shapes(str(tmp_path), images=4, size=48, seed=seed).manifest.uri)

    first = hash_of(0)
    assert hash_of(0) == first
    assert hash_of(1) != first
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    assert hash_of(0) != first


def test_an_image_does_not_depend_on_the_number_of_images(tmp_path: Path) -> None:
    make_shapes(str(tmp_path / "few"), images=4, size=48)
    make_shapes(str(tmp_path / "many"), images=9, size=48)
    few, many = files(tmp_path / "few/images"), files(tmp_path / "many/images")
    assert few.items() <= many.items()
    assert len(set(many.values())) == 9


def test_images_hold_one_to_three_visible_balanced_objects() -> None:
    masks = [draw(i, size=64, classes=6, seed=0)[1] for i in range(120)]
    classes = Counter(c for mask in masks for c in np.unique(mask[mask > 0]).tolist())
    assert set(classes) == {1, 2, 3, 4, 5, 6}
    assert min(classes.values()) >= 0.6 * max(classes.values())
    counts = Counter(len(np.unique(mask[mask > 0])) for mask in masks)
    assert set(counts) == {1, 2, 3}
    shares = [float((mask > 0).mean()) for mask in masks]
    assert min(shares) > 0.01
    assert 0.08 < np.mean(shares) < 0.4


def test_hidden_objects_are_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # every object covers the whole image, so only the last of each image can be seen
    everywhere = tuple(lambda x, y: np.ones(x.shape, bool) for _ in CLASS_NAMES)
    monkeypatch.setattr(shape_images, "_OUTLINES", everywhere)
    report = make_shapes(str(tmp_path), images=12, size=48)
    labels = tables.read_table(report.manifest.uri).column("labels").to_pylist()
    assert all(len(row) == 1 for row in labels)


def test_a_class_is_known_by_its_head_alone() -> None:
    """Its colours cover less than half of its pixels; the rest does not tell classes."""
    heads: list[float] = []
    coats: dict[int, list[NDArray[np.float64]]] = {1: [], 2: []}
    for i in range(80):
        image, mask = draw(i, size=96, classes=2, seed=5)
        # heads are strongly coloured, coats are not
        chroma = image.max(-1).astype(int) - image.min(-1)
        for label in np.unique(mask[mask > 0]).tolist():
            strong = chroma[mask == label] > 110
            heads.append(float(strong.mean()))
            coats[label].append(image[mask == label][~strong].mean(axis=0))
    assert 0.1 < np.mean(heads) < 0.5
    means = {label: np.mean(found, axis=0) for label, found in coats.items()}
    right = [
        np.linalg.norm(coat - means[label]) < np.linalg.norm(coat - means[3 - label])
        for label, found in coats.items()
        for coat in found
    ]
    assert np.mean(right) < 0.9


def test_objects_touch_more_often_than_not() -> None:
    masks = [draw(i, size=64, classes=4, seed=0)[1] for i in range(60)]
    several = [mask for mask in masks if len(np.unique(mask)) > 2]
    touching = [
        any(
            (np.minimum(a, b) > 0)[a != b].any()
            for a, b in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1]))
        )
        for mask in several
    ]
    assert np.mean(touching) > 0.5


@pytest.mark.parametrize(
    "arguments",
    [{"classes": 1}, {"classes": 7}, {"images": 3}, {"size": 20}, {"val_share": 0.0}],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        make_shapes(str(tmp_path), **arguments)


def test_what_is_drawn_is_a_folder_data_set_as_well(tmp_path: Path) -> None:
    made = make_shapes(str(tmp_path), images=6, size=48, classes=3, seed=2)
    read = import_folder(str(tmp_path), str(tmp_path / "read"))
    assert read.errors == ()
    assert read.manifest.label_space.names == made.manifest.label_space.names
    columns = ["image_id", "labels", "split", "height", "width"]
    found = [tables.read_table(m.manifest.uri, columns) for m in (made, read)]
    assert found[0].to_pylist() == found[1].to_pylist()
