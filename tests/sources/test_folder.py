from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.rows.images import encode_mask
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.sources.reading.names import safe_image_id

from .faulty import rows

HEIGHT, WIDTH = 12, 16
ANY_SPACE = LabelSpace.from_names(["a", "b"])


class Folder:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"
        (root / "images").mkdir()

    def photo(self, name: str, size: tuple[int, int] = (WIDTH, HEIGHT), **options: object) -> None:
        Image.new("RGB", size, "grey").save(self.root / "images" / name, **options)

    def mask(self, name: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
        (self.root / "masks").mkdir(exist_ok=True)
        data = encode_mask(np.ones(size, np.uint8), ANY_SPACE)
        (self.root / "masks" / name).write_bytes(data)

    def csv(self, *lines: str) -> None:
        (self.root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def import_(self, **options: object) -> ImportReport:
        return import_folder(str(self.root), str(self.out), **options)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    for name in ("a.jpg", "b.PNG", "c.webp"):
        folder.photo(name)
    return folder


def kinds(report: ImportReport) -> list[tuple[str, str]]:
    return [(error.image_id, error.kind) for error in report.errors]


def test_labels_splits_and_masks(folder: Folder) -> None:
    folder.csv("image_id,labels,split", "a,dog;cat,train", 'b.PNG," кот ; dog ;",val', "c,,")
    folder.mask("b.png")
    report = folder.import_()
    assert report.manifest.label_space.names == ("background", "cat", "dog", "кот")
    found = rows(report)
    assert found["a"]["labels"] == [1, 2]
    assert found["b"]["labels"] == [2, 3]
    assert found["c"]["labels"] == []
    assert [row["split"] for row in found.values()] == ["train", "val", "train"]
    assert found["a"]["uri"] == str(folder.root / "images/a.jpg")
    assert found["b"]["ground_truth_uri"] == str(folder.root / "masks/b.png")
    assert report.manifest.apply_exif
    assert report.manifest.ground_truth == {"val": 1}
    assert report.counts["unlabelled"] == 1
    assert not report.errors


def test_the_manifest_can_lie_in_the_folder_itself(folder: Folder) -> None:
    report = import_folder(str(folder.root), str(folder.root))
    assert rows(report)["a"]["uri"] == "images/a.jpg"


def test_class_order_from_the_argument_and_from_a_file(folder: Folder) -> None:
    folder.csv("image_id,label", "a,dog", "b,cat")
    (folder.root / "classes.txt").write_text("dog\n\nbird\ncat\n")
    report = folder.import_()
    assert report.manifest.label_space.names == ("background", "dog", "bird", "cat")
    assert rows(report)["b"]["labels"] == [3]
    report = folder.import_(class_names=["cat", "dog"])
    assert report.manifest.label_space.names == ("background", "cat", "dog")


def test_without_labels_all_are_unlabelled(folder: Folder) -> None:
    report = folder.import_()
    assert report.rows == report.counts["unlabelled"] == 3
    assert report.manifest.label_space.names == ("background", "object")
    report = folder.import_(class_names=["x", "y"])
    assert report.manifest.label_space.num_foreground == 2


def test_labels_can_be_left_aside(folder: Folder) -> None:
    folder.csv("image_id,labels", "a,unheard of", "gone,cat")
    report = folder.import_(class_names=["cat"], labels_from="none")
    assert report.rows == report.counts["unlabelled"] == 3
    assert not report.errors


def test_photographs_may_lie_in_the_folder_itself(folder: Folder) -> None:
    report = import_folder(str(folder.root / "images"), str(folder.out))
    assert report.rows == 3


def test_sizes_and_masks_are_those_after_rotation(folder: Folder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("turned", "mismatched"):
        folder.photo(f"{name}.jpg", exif=exif.tobytes())
    folder.mask("turned.png", (WIDTH, HEIGHT))
    folder.mask("mismatched.png", (HEIGHT, WIDTH))
    report = folder.import_()
    assert (rows(report)["turned"]["height"], rows(report)["turned"]["width"]) == (WIDTH, HEIGHT)
    assert kinds(report) == [("mismatched", "label")]
    assert "16 x 12 pixels, the photograph 12 x 16" in report.errors[0].message


def test_every_fault_is_an_error_row_and_nothing_is_lost(folder: Folder) -> None:
    (folder.root / "images/broken.jpg").write_bytes(b"no image")
    (folder.root / "images/empty.png").write_bytes(b"")
    folder.photo("a.png")
    folder.photo("many.jpg")
    folder.photo("behind.jpg")
    folder.photo("sound.jpg")
    folder.photo("large.jpg", (WIDTH + 1, HEIGHT))
    folder.csv(
        "image_id,labels",
        "a,cat",
        "b,dgo",
        "c,cat",
        "c,dog",
        "gone,cat",
        "many,cat,dog",
        "behind,background",
        "broken,cat",
        "sound,dog",
    )
    report = folder.import_(class_names=["cat", "dog"], max_pixels=WIDTH * HEIGHT)
    assert kinds(report) == [
        ("a", "label"),
        ("a", "label"),
        ("b", "label"),
        ("behind", "label"),
        ("broken", "decode"),
        ("c", "label"),
        ("empty", "decode"),
        ("gone", "missing"),
        ("large", "too_large"),
        ("many", "label"),
    ]
    messages = {error.image_id: error.message for error in report.errors}
    assert "'a' may be any of 2 files (a.jpg, a.png)" in messages["a"]
    assert "nearest known one is 'dog'" in messages["b"]
    assert "twice" in messages["c"]
    assert "separate the classes of an image by ';'" in messages["many"]
    assert rows(report)["sound"]["labels"] == [2]
    # ten files, one line without a file
    assert report.total == 10 + 1
    assert len(tables.read_errors(str(folder.out / "errors"))) == 10
    # and the CSV itself
    assert report.accounting.found == 12
    assert report.accounting.left_out["labels and class names"].first == ("labels.csv",)


def test_a_second_import_leaves_no_old_errors(folder: Folder) -> None:
    folder.csv("image_id,labels", "gone,cat")
    assert len(folder.import_().errors) == 1
    folder.csv("image_id,labels", "a,cat")
    assert not folder.import_().errors
    assert tables.read_errors(str(folder.out / "errors")) == []


def test_names_that_are_no_ids_get_safe_ones(folder: Folder) -> None:
    folder.photo("Мой кот 1.jpg")
    folder.photo(unicodedata.normalize("NFD", "café.jpg"))
    folder.photo("x" * 200 + ".jpg")
    folder.csv("image_id,labels", "Мой кот 1,кот", unicodedata.normalize("NFC", "café,кот"))
    report = folder.import_()
    found = rows(report)
    assert report.rows == 6
    assert found[safe_image_id("Мой кот 1")]["labels"] == [1]
    assert found[safe_image_id("café")]["labels"] == [1]
    assert not report.errors


def test_safe_ids_are_allowed_stable_and_distinct() -> None:
    names = ["a b", "a-b", "a  b", "кот", "собака", "..", "-x", "_", "x" * 129, "x" * 130, "é"]
    ids = [safe_image_id(name) for name in names]
    assert len(set(ids)) == len(names)
    assert all(tables.check_image_id(image_id) for image_id in ids)
    assert safe_image_id("a-b") == "a-b"
    assert safe_image_id("a b") == "a-b-c8687a08aa"
    assert safe_image_id("кот").startswith("image-")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image_id labels\na cat\n", "separated by ','"),
        (b"id,labels\na,cat\n", "the first line must name"),
        (b"", "the first line must name"),
        ("image_id,labels\na,chat caf\xe9\n".encode("latin-1"), "not UTF-8"),
        (b"image_id,labels\n" + b"a," + b"x" * 200_000 + b"\n", "is not a CSV file: field larger"),
    ],
)
def test_unreadable_labels_stop_the_import(folder: Folder, content: bytes, message: str) -> None:
    (folder.root / "labels.csv").write_bytes(content)
    with pytest.raises(CannotRunError, match=message):
        folder.import_()


def test_a_spreadsheets_byte_order_mark_and_line_ends(folder: Folder) -> None:
    text = "image_id, labels\r\na,cat\r\n"
    (folder.root / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert rows(folder.import_())["a"]["labels"] == [1]


def test_no_photographs(tmp_path: Path, folder: Folder) -> None:
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(CannotRunError, match="no photographs"):
        folder.import_()
    with pytest.raises(CannotRunError, match="nowhere does not exist"):
        import_folder(str(tmp_path / "nowhere"), str(folder.out))


def test_masks_without_a_photograph_are_counted(folder: Folder) -> None:
    folder.mask("zzz.png")
    assert folder.import_().counts["masks without a photograph"] == 1
