"""`pmm eval`: any masks against any truth, held against torchmetrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from pmm_ray.cli import app
from pmm_ray.commands.eval import score_folder
from pmm_ray.labels import COCO14, VOC12, LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.index import read_all
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.rows.masks import mask_row
from pmm_ray.sources.datasets.coco14 import import_coco14
from pmm_ray.sources.datasets.raster import draw_objects
from pmm_ray.sources.datasets.shapes import make_shapes

Masks = Mapping[str, Any]
pytestmark = pytest.mark.usefixtures("ray_session")


def save(folder: Path, masks: Masks, *, palette: bool = False) -> str:
    for name, mask in masks.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(mask)
        if palette:
            image.putpalette(VOC12.palette.tobytes())
        image.save(path)
    return str(folder)


def table(folder: Path, masks: Masks, space: LabelSpace) -> str:
    rows = []
    for name, mask in masks.items():
        about = {"image_id": name, "height": mask.shape[0], "width": mask.shape[1]}
        rows.append(mask_row(about, mask, space, 0))
    data = tables.to_bytes(pa.Table.from_pylist(rows, tables.MASKS))
    storage.write_bytes(str(folder / "part-a.parquet"), data)
    return str(folder)


def random_pairs(space: LabelSpace, images: int = 6) -> tuple[dict[str, Any], dict[str, Any]]:
    """Truth with a void border and masks that are right in two thirds, sizes differ by image."""
    rng = np.random.default_rng(0)
    truths, masks = {}, {}
    for i in range(images):
        shape = (30 + i, 41 - i)
        truth = rng.integers(0, space.num_classes, shape).astype(space.mask_dtype)
        noise = rng.integers(0, space.num_classes, shape).astype(space.mask_dtype)
        masks[f"im-{i}"] = np.where(rng.random(shape) < 0.3, noise, truth)
        truth[0] = space.ignore
        truths[f"im-{i}"] = truth
    return truths, masks


def oracle(truths: Masks, masks: Masks, space: LabelSpace) -> Any:
    metric = MulticlassJaccardIndex(space.num_classes, average="none", ignore_index=space.ignore)
    for name, truth in truths.items():
        mask = masks[name].astype(np.int64)
        metric.update(torch.from_numpy(mask), torch.from_numpy(truth.astype(np.int64)))
    return metric.compute().numpy()


def evaluate(tmp_path: Path, *arguments: Any, code: int = 0, **options: Any) -> dict[str, Any]:
    assert score_folder(*arguments, out=tmp_path / "out", **options) == code
    path = tmp_path / "out" / "scores.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if code == 0 else {}


def error_rows(tmp_path: Path) -> dict[str, tuple[str, str]]:
    places = [tmp_path / "out/errors", *tmp_path.glob("out/score_masks-*/errors")]
    rows = [row for place in places for row in tables.read_errors(str(place))]
    return {row.image_id: (row.kind, row.message) for row in rows}


def as_dataset(masks: Masks, space: LabelSpace) -> dict[str, Any]:
    return {name: space.to_dataset(mask) for name, mask in masks.items()}


class TestAgreesWithTorchmetrics:
    @pytest.mark.parametrize("space", [VOC12, COCO14], ids=lambda s: s.name)
    @pytest.mark.parametrize("layout", ["contiguous", "dataset", "mixed", "table"])
    def test_on_random_masks(self, tmp_path: Path, space: LabelSpace, layout: str) -> None:
        truths, masks = random_pairs(space)
        shown_truth, shown = truths, masks
        if layout in ("dataset", "mixed"):
            shown_truth = as_dataset(truths, space)
        if layout == "dataset":
            shown = as_dataset(masks, space)
        truth = save(tmp_path / "truth", shown_truth, palette=layout == "mixed")
        made = (
            table(tmp_path / "masks", shown, space)
            if layout == "table"
            else save(tmp_path / "masks" / "sub", shown, palette=layout == "contiguous")
        )
        found = evaluate(tmp_path, made, truth, label_space=space.name)
        expected = oracle(truths, masks, space)
        np.testing.assert_allclose(list(found["class_iou"].values()), expected, atol=2e-6)
        assert list(found["class_iou"]) == list(space.names)
        assert found["mean_iou"] == pytest.approx(expected.mean(), abs=2e-6)
        assert found["mean_iou_predicted"] == found["mean_iou"]
        assert found["scored"] == len(masks)

    @pytest.mark.parametrize("classes", [2, 1000])
    def test_on_2_and_on_1000_classes(self, tmp_path: Path, classes: int) -> None:
        names = tmp_path / "имена.txt"
        names.write_text("\n".join(f"класс {i}" for i in range(1, classes + 1)), encoding="utf-8")
        space = LabelSpace.from_names([f"класс {i}" for i in range(1, classes + 1)])
        truths, masks = random_pairs(space, images=3)
        truth = save(tmp_path / "truth", truths)
        found = evaluate(tmp_path, save(tmp_path / "masks", masks), truth, label_space=str(names))
        expected = oracle(truths, masks, space)
        present = {int(v) for t in truths.values() for v in np.unique(t)} - {space.ignore}
        got = [found["class_iou"][space.names[c]] for c in sorted(present)]
        np.testing.assert_allclose(got, expected[sorted(present)], atol=2e-6)
        assert found["mean_iou"] == pytest.approx(expected[sorted(present)].mean(), abs=2e-6)

    def test_classes_that_are_only_predicted(self, tmp_path: Path) -> None:
        truths = {"a": np.array([[0, 0, 1, 255]], np.uint8)}
        masks = {"a": np.array([[0, 2, 1, 7]], np.uint8)}
        truth = save(tmp_path / "truth", truths)
        found = evaluate(tmp_path, save(tmp_path / "m", masks), truth, label_space="voc12")
        assert found["mean_iou"] == pytest.approx(0.75)
        expected = MulticlassJaccardIndex(21, ignore_index=255)
        expected.update(*(torch.tensor(x["a"].astype(np.int64)) for x in (masks, truths)))
        assert found["mean_iou_predicted"] == pytest.approx(float(expected.compute()), abs=1e-6)
        assert "bird" in found["excluded"]

    def test_pixels_that_a_mask_leaves_open_are_not_hit(self, tmp_path: Path) -> None:
        truth = save(tmp_path / "truth", {"a": np.array([[0, 0, 1, 1]], np.uint8)})
        made = save(tmp_path / "m", {"a": np.array([[0, 0, 1, 255]], np.uint8)})
        found = evaluate(tmp_path, made, truth, label_space="voc12")
        assert found["class_iou"]["aeroplane"] == 0.5
        assert found["class_iou"]["background"] == 1.0
        assert found["left_open"] == 0.25

    def test_on_real_voc_masks(self, shared: Path, tmp_path: Path) -> None:
        voc = shared / "data/voc12-mini/VOCdevkit/VOC2012"
        made = shared / "data/oracle/ppmg"
        ids = (voc / "ImageSets/Segmentation/val.txt").read_text().split()[::4]
        listed = tmp_path / "some.txt"
        listed.write_text("\n".join(ids))
        truth_folder = voc / "SegmentationClassAug"
        found = evaluate(
            tmp_path, str(made), str(truth_folder), label_space="voc12", images=str(listed)
        )
        truths = {i: decode_mask((truth_folder / f"{i}.png").read_bytes()) for i in ids}
        masks = {i: decode_mask((made / f"{i}.png").read_bytes()) for i in ids}
        expected = oracle(truths, masks, VOC12)
        for name, value in zip(VOC12.names, expected, strict=True):
            if name in found["excluded"]:
                assert found["class_iou"][name] is None
            else:
                assert found["class_iou"][name] == pytest.approx(value, abs=1e-6)
        assert found["scored"] == len(ids) == 38

    def test_on_real_coco_masks_in_91_ids(self, shared: Path, tmp_path: Path) -> None:
        data = shared / "data/coco14-mini"
        report = import_coco14(str(data), str(tmp_path / "coco"), splits=["val"])
        rows = {r["image_id"]: r for r in tables.read_table(report.manifest.uri).to_pylist()}
        truths, masks = {}, {}
        for item in read_all(str(tmp_path / "coco/objects")).to_pylist()[:24]:
            name = item["image_id"]
            size = rows[name]["height"], rows[name]["width"]
            truths[name] = draw_objects(item["objects"], *size, COCO14)
            masks[name] = draw_objects(item["objects"], *size, COCO14, overlap="smallest")
        truth = save(tmp_path / "truth91", as_dataset(truths, COCO14))
        found = evaluate(tmp_path, save(tmp_path / "m81", masks), truth, label_space="coco14")
        assert found["readings"] == {"truth": "dataset", "mask": "contiguous"}
        expected = oracle(truths, masks, COCO14)
        for name, value in zip(COCO14.names, expected, strict=True):
            assert found["class_iou"][name] == (
                None if name in found["excluded"] else pytest.approx(value, abs=1e-6)
            )


class TestLayouts:
    def test_values_that_fit_both_are_told_by_what_agrees(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        # 16 and 57, the masks' cat and chair, could be the data set's own ids as well
        truth = save(tmp_path / "t", {"a": np.array([[0, 17, 62, 90]], np.uint8)})
        masks = {"a": COCO14.to_contiguous(np.array([[0, 17, 62, 0]], np.uint8))}
        found = evaluate(tmp_path, save(tmp_path / "m", masks), truth, label_space="coco14")
        assert found["readings"] == {"truth": "dataset", "mask": "contiguous"}
        assert found["class_iou"]["cat"] == 1.0
        assert "read as truth dataset, masks contiguous" in capfd.readouterr().out

    def test_what_cannot_be_told_is_asked_for(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        truth = save(tmp_path / "t", {"a": np.array([[0, 17, 62, 90]], np.uint8)})
        masks = save(tmp_path / "m", {"a": np.array([[0, 44, 44, 44]], np.uint8)})
        evaluate(tmp_path, masks, truth, label_space="coco14", code=1)
        assert "--mask-ids" in capfd.readouterr().err
        found = evaluate(tmp_path, masks, truth, label_space="coco14", mask_ids="dataset")
        assert found["readings"]["mask"] == "dataset"

    def test_one_odd_image_does_not_sway_the_others(self, tmp_path: Path) -> None:
        truths, masks = random_pairs(COCO14)
        odd = masks | {"im-0": np.full_like(masks["im-0"], 200)}
        truth = save(tmp_path / "t", as_dataset(truths, COCO14))
        found = evaluate(tmp_path, save(tmp_path / "m", odd), truth, label_space="coco14")
        assert error_rows(tmp_path)["im-0"] == (
            "label",
            "the mask holds [200], which are no contiguous ids",
        )
        rest = {name: truths[name] for name in truths if name != "im-0"}
        assert found["mean_iou"] == pytest.approx(oracle(rest, masks, COCO14).mean(), abs=2e-6)
        assert (found["scored"], found["error_rows"]) == (5, 1)


class TestWhatIsMissing:
    @pytest.fixture
    def pairs(self, tmp_path: Path) -> tuple[str, str]:
        truths, masks = random_pairs(VOC12)
        del truths["im-1"], masks["im-2"]
        masks["im-3"] = masks["im-3"][:-1]
        masks["Мой кот 1"] = truths["Мой кот 1"] = np.zeros((3, 3), np.uint8)
        made, truth = save(tmp_path / "masks", masks), save(tmp_path / "truth", truths)
        Image.new("RGB", (36, 35)).save(tmp_path / "masks/im-4.png")
        (tmp_path / "masks/im-5.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        return made, truth

    def test_is_an_error_row_with_its_name(self, tmp_path: Path, pairs: tuple[str, str]) -> None:
        found = evaluate(tmp_path, *pairs, label_space="voc12")
        rows = error_rows(tmp_path)
        assert {name: kind for name, (kind, _) in rows.items()} == {
            "im-1": "missing",
            "im-2": "missing",
            "im-3": "label",
            "im-4": "label",
            "im-5": "decode",
        }
        assert "no ground truth of that name" in rows["im-1"][1]
        assert "no mask of that name" in rows["im-2"][1]
        assert rows["im-3"][1] == "the mask has 38 x 32 px, its ground truth 38 x 33"
        assert "RGB" in rows["im-4"][1]
        assert found["scored"] == 2  # im-0 and the one whose name is no id

    def test_the_budget_is_kept(
        self, tmp_path: Path, pairs: tuple[str, str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        for budget in (1, 3):
            evaluate(
                tmp_path, *pairs, label_space="voc12", settings=[f"errors.budget={budget}"], code=3
            )
        said = capfd.readouterr().err
        assert "the budget is 1" in said
        assert "--list" in said

    def test_a_list_says_which_images_count(self, tmp_path: Path, pairs: tuple[str, str]) -> None:
        (tmp_path / "val.txt").write_text("im-0 3 4\n/JPEGImages/im-2.jpg /x/im-2.png\nnowhere\n")
        found = evaluate(tmp_path, *pairs, label_space="voc12", images=str(tmp_path / "val.txt"))
        assert found["scored"] == 1
        assert set(error_rows(tmp_path)) == {"im-2", "nowhere"}

    @pytest.mark.parametrize(
        ("line", "several"),
        [
            ("im-0 im-3 im-4", True),
            ("im-0.png im-3.png", True),
            ("im-0 3 im-3", True),
            ("im-0 -1", False),
            ("im-0 0 1 5", False),
            ("im-0 im-0", False),
        ],
    )
    def test_a_line_of_several_ids_is_refused(
        self, tmp_path: Path, line: str, several: bool, capfd: pytest.CaptureFixture[str]
    ) -> None:
        truths, masks = random_pairs(VOC12)
        truths["1"] = masks["1"] = truths["im-0"]
        (tmp_path / "val.txt").write_text(f"{line}\n")
        sides = save(tmp_path / "masks", masks), save(tmp_path / "t", truths)
        code, images = int(several), str(tmp_path / "val.txt")
        found = evaluate(tmp_path, *sides, label_space="voc12", images=images, code=code)
        assert ("write one id a line" in capfd.readouterr().err) == several
        assert several or found["scored"] == 1

    @pytest.mark.parametrize(
        ("truths", "mask", "scored"), [({"a": 0}, 77, 0), ({"a": 255, "b": 37}, 1, 1)]
    )
    def test_no_mask_that_can_be_scored_gives_no_figure(
        self,
        truths: dict[str, int],
        mask: int,
        scored: int,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        full = {name: np.full((2, 2), value, np.uint8) for name, value in truths.items()}
        truth = save(tmp_path / "t", full)
        made = save(tmp_path / "m", dict.fromkeys(truths, np.full((2, 2), mask, np.uint8)))
        code, settings = int(not scored), ["errors.budget=1"]
        evaluate(tmp_path, made, truth, label_space="voc12", settings=settings, code=code)
        found = json.loads((tmp_path / "out/scores.json").read_text())
        assert found["mean_iou"] is None
        assert found["scored"] == scored
        said = capfd.readouterr().out
        assert "no mask could be scored" in said
        assert "nan" not in said

    def test_a_folder_called_part_is_no_table(self, tmp_path: Path) -> None:
        truths, masks = random_pairs(VOC12)
        made = save(tmp_path / "part-1" / "masks", masks)
        (tmp_path / "part-1/masks/notes.parquet").write_bytes(b"")
        truth = save(tmp_path / "t", truths)
        assert evaluate(tmp_path, made, truth, label_space="voc12")["scored"] == len(masks)

    def test_two_masks_of_one_name(self, tmp_path: Path) -> None:
        truths, masks = random_pairs(VOC12, images=2)
        save(tmp_path / "masks/b", {"im-0": masks["im-0"]})
        made = save(tmp_path / "masks/a", masks).rsplit("/", 1)[0]
        evaluate(tmp_path, made, save(tmp_path / "t", truths), label_space="voc12")
        reasons = [reason for _, reason in error_rows(tmp_path).values()]
        assert len(reasons) == 3  # both masks, and the truth that either may go with
        assert all("make the paths of both sides alike" in reason for reason in reasons)


class TestWhatCannotBeScored:
    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (lambda folder: None, "nothing is at"),
            (lambda folder: folder.mkdir(), "no masks in"),
            (lambda folder: save(folder, {"x": np.zeros((2, 2), np.uint8)}), "of its name"),
            (
                lambda folder: storage.write_bytes(
                    str(folder / "part-a.parquet"),
                    tables.to_bytes(pa.table({"image_id": ["a"]})),
                ),
                "holds no masks",
            ),
            (
                lambda folder: storage.write_bytes(str(folder / "run.json"), b"{}"),
                "is the folder of a run",
            ),
        ],
    )
    def test_is_one_line(
        self,
        tmp_path: Path,
        make: Callable[[Path], object],
        text: str,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        make(tmp_path / "masks")
        truth = save(tmp_path / "t", {"a": np.zeros((2, 2), np.uint8)})
        evaluate(tmp_path, str(tmp_path / "masks"), truth, label_space="voc12", code=1)
        assert text in capfd.readouterr().err

    def test_classes_that_nobody_names(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        truth = save(tmp_path / "t", {"a": np.zeros((2, 2), np.uint8)})
        evaluate(tmp_path, truth, truth, code=1)
        assert "--label-space" in capfd.readouterr().err
        evaluate(tmp_path, truth, truth, label_space="cityscapes", code=1)
        assert "no label space 'cityscapes'" in capfd.readouterr().err


def test_the_command_takes_the_classes_of_an_imported_data_set(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = make_shapes(str(tmp_path / "shapes"), images=8, size=48, classes=3, seed=0)
    masks = str(tmp_path / "shapes/masks")
    arguments = ["eval", masks, "--ground-truth", masks, "--out", str(tmp_path / "out")]
    for _ in range(2):  # the second time nothing is left to be counted
        with pytest.raises(SystemExit) as done:
            app(arguments)
        assert done.value.code == 0
        said = capfd.readouterr().out
        assert "mIoU 100.00 % over the 4 classes" in said
        assert made.manifest.label_space.names[1] in said


def test_masks_whose_palette_was_reordered_are_error_rows(tmp_path: Path) -> None:
    # as programs that make files smaller write them: cat's colour at index 1
    values = {name: np.array([[0, 0, 8, 8]], np.uint8) for name in "ab"}
    truth, masks = save(tmp_path / "truth", values, palette=True), tmp_path / "masks"
    save(masks, {"a": values["a"]}, palette=True)
    image = Image.fromarray(np.minimum(values["b"], 1))
    image.putpalette([*VOC12.palette[0].tolist(), *VOC12.palette[8].tolist()])
    image.save(masks / "b.png")
    found = evaluate(tmp_path, masks, truth, label_space="voc12")
    assert (found["mean_iou"], found["scored"]) == (1, 1)
    assert "1 (aeroplane) that of 8 (cat)" in error_rows(tmp_path)["b"][1]
