"""Ground truth of a folder whose values mean something else than they seem to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmm_ray.labels import LabelSpace, voc_palette
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.sources.importing.understood import console

from .faulty import a_folder, rows

Values = dict[str, tuple[int, ...]]


def masks(root: Path, values: Values, palette: Any = None) -> None:
    (root / "masks").mkdir()
    for name, present in values.items():
        mask = np.zeros((48, 64), np.uint8)
        for row, value in enumerate(present):
            mask[8 * row : 8 * row + 8] = value
        image = Image.fromarray(mask)
        if palette is not None:
            image.putpalette(np.asarray(palette, np.uint8).tobytes())
        image.save(root / f"masks/{name}.png")


def import_(
    root: Path, labels: dict[str, str], values: Values, listed: str = "", palette: Any = None
) -> ImportReport:
    masks(root, values, palette)
    if listed:
        (root / "classes.txt").write_text(listed)
    lines = "".join(f"{name},{classes}\n" for name, classes in labels.items())
    return a_folder(root, f"image_id,labels\n{lines}", *(f"{name}.jpg" for name in labels))


def truths(report: ImportReport) -> dict[str, set[int]]:
    """The classes that every reader of truth gets, by image."""
    manifest = report.manifest
    photographs = Photographs(manifest.root, True, 10**6, manifest.label_space)
    return {
        image_id: set(np.unique(photographs.truth(row)).tolist())
        for image_id, row in rows(report).items()
        if row["ground_truth_uri"]
    }


# values that a class list states


@pytest.mark.parametrize(("cat", "dog", "bird"), [(2, 3, 4), (10, 20, 30), (3, 1, 200)])
def test_masks_hold_the_ids_of_the_class_list(
    cat: int, dog: int, bird: int, tmp_path: Path
) -> None:
    listed = f"0 background\n{cat} cat\n{dog} dog\n{bird} bird\n"
    values = {"a": (cat,), "b": (dog, 255), "c": (cat, bird)}
    report = import_(tmp_path, {"a": "cat", "b": "dog", "c": "cat;bird"}, values, listed)
    space = report.manifest.label_space
    assert space.dataset_ids == (0, *sorted((cat, dog, bird)))
    of = {name: space.id_of(name) for name in ("cat", "dog", "bird")}
    assert truths(report) == {
        "a": {0, of["cat"]},
        "b": {0, of["dog"], 255},
        "c": {0, of["cat"], of["bird"]},
    }
    assert "labels differ" not in console(report)


def test_a_value_that_the_list_does_not_state_is_an_error(tmp_path: Path) -> None:
    listed = "0 background\n2 cat\n4 dog\n"
    report = import_(tmp_path, {"a": "cat", "b": "dog"}, {"a": (2,), "b": (3,)}, listed)
    [error] = report.errors
    assert (error.image_id, error.kind) == ("b", "label")
    assert f"{tmp_path}/masks/b.png: unknown mask values 3: allowed are 0, 2, 4 and 255" in (
        error.message
    )


def test_masks_of_a_list_in_order_stay_where_they_are(tmp_path: Path) -> None:
    report = import_(tmp_path, {"a": "cat", "b": "dog"}, {"a": (1,), "b": (2,)}, "cat\ndog\n")
    assert rows(report)["a"]["ground_truth_uri"] == str(tmp_path / "masks/a.png")
    assert truths(report) == {"a": {0, 1}, "b": {0, 2}}


# values that the labels contradict

_BREEDS = {"a": "Abyssinian", "b": "Beagle", "c": "Boxer"}
_CATS = {"a": "cat", "b": "dog", "c": "cat", "d": "dog"}


@pytest.mark.parametrize(
    ("labels", "values", "listed"),
    [
        (_BREEDS, dict.fromkeys("abc", (1, 2, 3)), ""),  # trimaps
        (_BREEDS, dict.fromkeys("abc", (1, 2, 3)), "Abyssinian\nBeagle\nBoxer\n"),
        (_CATS, dict.fromkeys("abcd", (1,)), ""),  # foreground
        (_CATS, {"a": (2,), "b": (1,), "c": (2,), "d": (1,)}, ""),  # another order
        (_CATS, {"a": (0, 1, 7, 13), "b": (1, 2), "c": (2, 8), "d": (1, 18)}, ""),  # trainIds
    ],
)
def test_masks_of_other_classes_than_the_labels_are_refused(
    labels: dict[str, str], values: Values, listed: str, tmp_path: Path
) -> None:
    with pytest.raises(CannotRunError, match=r"a line each \(`0 background`, `2 cat`\)") as caught:
        import_(tmp_path, labels, values, listed)
    assert "of 3 masks" in str(caught.value) or "of 4 masks" in str(caught.value)
    assert f"{tmp_path}/masks/" in str(caught.value)


def test_the_refusal_names_values_and_labels(tmp_path: Path) -> None:
    values = {"a": (2,), "b": (1,), "c": (2,), "d": (1,)}
    with pytest.raises(CannotRunError) as caught:
        import_(tmp_path, _CATS, values)
    said = f"{tmp_path}/masks/a.png holds 2 (dog), and its image is labelled cat; 4 of 4 masks"
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ((2,), "labels differ from masks: 1 of 4 looked into, such as: {}/masks/c.png holds 2"),
        ((0,), "background alone, though their images have labels: 1 of 4 looked into, such as {}"),
        ((1, 2), "{}/masks/c.png holds 1 (cat), 2 (dog), and its image is labelled cat"),
    ],
)
def test_a_mask_that_its_labels_contradict_is_said(
    value: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    values = {"a": (1,), "b": (2,), "c": value, "d": (2,)}
    report = import_(tmp_path, _CATS, values)
    assert said.format(tmp_path) in " ".join(report.notes)
    assert report.rows == 4


def test_labels_that_lack_a_class_of_their_image_are_said_and_no_reason_to_refuse(
    tmp_path: Path,
) -> None:
    values: Values = {"a": (1, 2), "b": (1, 2), "c": (1,), "d": (1, 2)}
    report = import_(tmp_path, _CATS, values)
    assert report.rows == 4
    assert "labels differ from masks: 3 of 4 looked into" in " ".join(report.notes)


def test_images_without_labels_are_not_compared(tmp_path: Path) -> None:
    labels = {"a": "cat", "b": "dog", "c": "", "d": "", "e": ""}
    values: Values = {"a": (1,), "b": (2,), "c": (1, 2), "d": (1,), "e": (2,)}
    report = import_(tmp_path, labels, values)
    assert (report.rows, report.notes) == (5, ())


def test_masks_between_the_first_ones_are_looked_into(tmp_path: Path) -> None:
    names = [f"im{i:02}" for i in range(31)]
    labels = {name: "cat" if i < 15 else "dog" for i, name in enumerate(names)}
    with pytest.raises(CannotRunError, match="8 of 16 masks"):
        import_(tmp_path, labels, dict.fromkeys(names, (1,)))


# masks of images without labels, which only a score would look at


def test_masks_of_the_held_out_side_that_hold_no_class_are_refused(tmp_path: Path) -> None:
    labels = {"a": "cat", "b": "cat", "d": "", "e": ""}
    with pytest.raises(CannotRunError, match=r"masks/d\.png and its like hold only 0 and 255"):
        import_(tmp_path, labels, {"d": (255,), "e": (255,)})


def test_so_they_are_where_those_of_labels_are_empty(tmp_path: Path) -> None:
    labels = {"a": "cat", "b": "cat", "d": ""}
    with pytest.raises(CannotRunError, match=r"masks/d\.png and its like hold only 0 and 255"):
        import_(tmp_path, labels, {"a": (0,), "d": (255,)})


def test_beside_masks_of_classes_they_are_said(tmp_path: Path) -> None:
    labels = {"a": "cat", "b": "dog", "d": "", "e": ""}
    report = import_(tmp_path, labels, {"a": (1, 255), "b": (2,), "d": (255,), "e": (255,)})
    [said] = report.notes
    assert said.startswith(f"masks of images without labels: {tmp_path}/masks/d.png and its like")
    assert "255 means 'not labelled': if it is the class, save it as its id" in said


@pytest.mark.parametrize("value", [7, 76, 254])
def test_values_that_are_no_class_are_said_of_them_too(value: int, tmp_path: Path) -> None:
    report = import_(tmp_path, {"a": "cat", "d": ""}, {"d": (value,)})
    assert f"masks hold [{value}], which are no classes: 0..1 and 255 are" in report.notes[0]


def test_masks_of_background_or_of_some_not_labelled_are_right(tmp_path: Path) -> None:
    labels = {"a": "cat", "b": "dog", "d": "", "e": ""}
    report = import_(tmp_path, labels, {"a": (1,), "b": (2,), "d": (255, 1), "e": (0,)})
    assert report.notes == ()


# labels that are numbers


def test_numbers_are_the_values_of_masks(tmp_path: Path) -> None:
    labels = {"a": "2", "b": "3", "c": "2;10"}
    report = import_(tmp_path, labels, {"a": (2,), "b": (3, 255), "c": (2, 10)})
    space = report.manifest.label_space
    assert space == LabelSpace("folder", ("background", "2", "3", "10"), (0, 2, 3, 10))
    assert truths(report) == {"a": {0, 1}, "b": {0, 2, 255}, "c": {0, 1, 3}}
    assert report.notes == ("labels are numbers, and taken for the values of the masks",)


@pytest.mark.parametrize(
    ("labels", "value"), [(("2", "3"), 1), (("0", "1"), 1), (("7", "9"), 8), (("0", "2"), 0)]
)
def test_numbers_that_are_not_the_values_of_masks_are_refused(
    labels: tuple[str, str], value: int, tmp_path: Path
) -> None:
    with pytest.raises(CannotRunError, match="which value means which label is not sure"):
        import_(tmp_path, dict(zip("ab", labels, strict=True)), {"b": (value,)})


def test_numbers_without_masks_are_names(tmp_path: Path) -> None:
    report = a_folder(tmp_path, "image_id,labels\na,2\nb,0\n")
    assert report.manifest.label_space.names == ("background", "0", "2")
    assert report.notes == ()


# colours of another class


def test_vocs_colours_at_other_indices_are_an_error(tmp_path: Path) -> None:
    shown = voc_palette()[[0, 2, 1, 255]]  # as an optimiser sorts them
    report = import_(
        tmp_path, {"a": "cat", "b": "dog"}, {"a": (1, 3), "b": ()}, "cat\ndog\n", shown
    )
    [error] = report.errors
    assert (error.image_id, error.kind) == ("a", "label")
    assert "the indices [0, 1, 3] of the mask" in error.message
    assert "such as 1 (cat) that of 2 (dog)" in error.message


@pytest.mark.parametrize(
    "shown",
    [
        voc_palette()[:4],
        [[0, 0, 0], [0, 128, 0], [9, 9, 9]],  # one colour is none of VOC's
        [[0, 0, 0], [0, 0, 128], [128, 0, 0]],  # blue would be class 4 of two
    ],
)
def test_other_palettes_say_nothing(shown: Any, tmp_path: Path) -> None:
    values: Values = {"a": (1, 2), "b": (1, 2)}
    labels = dict.fromkeys("ab", "cat;dog")
    report = import_(tmp_path, labels, values, "cat\ndog\n", shown)
    assert (report.rows, report.errors) == (2, ())
