from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pmm_ray.report import build_report, gains, print_stage_table
from pmm_ray.report.console import rows_of
from pmm_ray.report.gains import Gains, gains_of
from pmm_ray.report.gallery import image_scores
from pmm_ray.report.pictures import overlay_mask
from pmm_ray.report.run_data import load_run
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.core.index import read_index
from pmm_ray.runtime.rows.images import encode_mask
from pmm_ray.stages.judge_masks import JUDGED

from .page import read_page
from .run_folder import SPACE, RunFolder


def test_what_a_training_measured_on_held_out_images_is_shown(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.train("train_classifier", mean_average_precision=0.812, cam_miou=0.345)
    run.stage("make_base_masks")
    run.train("train_multicrop")
    _, page = read_page(run)
    assert "held-out mAP 81.2" in page.words
    assert "held-out CAM mIoU 34.5" in page.words
    assert page.words.count("held-out") == 2
    assert [row.stage for row in rows_of(load_run(run.uri))][-2:] == [
        "make_base_masks",
        "train_multicrop",
    ]


def test_an_elastic_training_says_how_many_workers_did_which_steps(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.train("train_classifier", details={"workers_by_step": [[0, 4]]})
    run.train("train_multicrop", details={"workers_by_step": [[0, 4], [10, 3], [25, 8]]})
    _, page = read_page(run)
    assert "workers: 4, 3 from step 11, 8 from step 26" in page.words
    assert page.words.count("workers:") == 1


def test_a_full_run_has_every_part_and_its_numbers(full_run: RunFolder) -> None:
    html, page = read_page(full_run)
    run = load_run(full_run.uri)
    assert len(run.evaluations) == 6
    for evaluation in run.evaluations:
        assert evaluation.title in page.words
        assert f"{evaluation.mean_iou * 100:.1f}" in page.words
        for value in evaluation.class_iou.values():
            assert value is None or f"{value * 100:.1f}" in page.words
    assert "left out of the mean: ring" in page.words
    assert "3.2" in page.words  # images/s
    assert html.count('class="line"') == 3  # three trainings
    assert "test run" in page.words
    assert "5:00" in page.words
    assert "no such file" in page.words
    assert "evaluate-make_masks-val" in page.words  # pixel labels used
    assert "not finished" not in page.words
    assert "memory 2.0 GiB" in page.words
    assert "learning rate 0.01 to 0.00025" in page.words


def test_the_mean_over_classes_with_training_images_stands_beside_that_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run", train_labels=(1,), filled=1)
    run.evaluate(run.masks("make_masks", 5), "make_masks", "PPMG", "val")
    (evaluation,) = load_run(run.uri).evaluations
    of = evaluation.class_iou
    assert of["background"] is not None
    assert of["disc"] is not None
    # the square has truth, but no training image
    want = f"{(of['background'] + of['disc']) * 50:.1f}"
    assert want != f"{evaluation.mean_iou * 100:.1f}"
    _, page = read_page(run)
    assert f"{want} over 1 filled classes" in page.words
    print_stage_table(run.uri, Console(width=120))
    said = capsys.readouterr().out
    assert f"the classes with 1 or more training images (1): PPMG {want} val" in said


def test_the_page_needs_nothing_else_and_escapes_what_users_wrote(full_run: RunFolder) -> None:
    html, page = read_page(full_run)
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "script" not in page.tags
    assert "b" in page.tags
    assert "<b>square" not in html
    assert "&lt;b&gt;square &amp; co&lt;/b&gt;" in html
    assert "<img src=x>" not in html


def test_what_the_import_understood_is_shown_and_escaped(full_run: RunFolder) -> None:
    lines = ["classes with their images (train + val): <b>cat</b> 3 + 1", "labels: labels.csv"]
    full_run.stage("import_data", details={"understood": lines})
    full_run.write_record()
    html, page = read_page(full_run)
    assert "Data" in page.words
    assert "&lt;b&gt;cat&lt;/b&gt; 3 + 1" in html
    assert "labels: labels.csv" in page.words


def test_each_step_shows_the_image_that_gains_most(full_run: RunFolder) -> None:
    html, page = read_page(full_run)
    section = html[html.index("What each step mends") : html.index("<h2>Gallery</h2>")]
    steps = re.findall(r"<h4><span>([^<]+)</span> <small>([^<;]+);", section)
    assert [title for title, _ in steps] == [
        "CAM argmax → CRF argmax",
        "CRF argmax → PPMG",
        "PPMG → segmenter, round 0",
        "segmenter, round 0 → segmenter, round 1",
    ]
    rungs = [e for e in load_run(full_run.uri).evaluations if e.split == "val"]
    scores = [dict(image_scores(read_index(e.folder.uri), SPACE.num_classes)) for e in rungs]
    for (_, image_id), (before, after) in zip(steps, pairwise(scores), strict=True):
        gains = {i: after[i] - before[i] for i in before}
        assert gains[image_id] == max(gains.values()) > 0
    assert len(re.findall(r'src="data:', section)) == 4 * 4
    assert "The CRF carries the maps to edges of colour" in page.words
    assert "pixel goes to the class of whose total it holds the larger share" in page.words


def test_steps_compare_the_first_images_that_all_rungs_have(
    make_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gains, "_MOST_IMAGES", 2)
    run = make_run(images=9)
    lacking = run.masks("make_masks", 4)
    # one image lacks a mask, so that parts and rows of the two rungs differ
    run.evaluate({i: mask for i, mask in lacking.items() if i != "img-0"}, "make_masks", "a", "val")
    run.evaluate(run.masks("predict_masks-r0-val", 1), "predict_masks-r0-val", "b", "val")
    run.write_record()
    (step,) = (gains_of(load_run(run.uri)) or Gains((), ())).steps
    assert (step.compared, step.better, step.image_id) == (2, 2, "img-2")


def test_segmenters_of_tables_are_no_steps(full_run: RunFolder) -> None:
    name = "predict_masks-clamp-r0-val"
    full_run.evaluate(full_run.masks(name, 0), name, "clamp, round 0", "val")
    full_run.write_record()
    assert "→ clamp" not in read_page(full_run)[1].words


def test_a_step_by_which_no_image_gains_says_so(make_run: Callable[..., RunFolder]) -> None:
    run = make_run()
    run.evaluate(run.masks("make_masks", 1), "make_masks", "PPMG", "val")
    name = "predict_masks-r0-val"
    run.evaluate(run.masks(name, 3), name, "segmenter", "val")
    run.write_record()
    words = read_page(run)[1].words
    assert "of 5 images 0 gain, 4 lose" in words
    assert "No image gains by it." in words


def test_a_ladder_of_one_rung_shows_no_step(make_run: Callable[..., RunFolder]) -> None:
    run = make_run()
    run.evaluate(run.masks("make_masks", 2), "make_masks", "PPMG", "val")
    run.write_record()
    assert "What each step mends" not in read_page(run)[1].words


def test_the_gallery_shows_the_best_and_the_worst_with_a_legend(full_run: RunFolder) -> None:
    html, page = read_page(full_run)
    html = html[html.index("<h2>Gallery</h2>") :]
    shown = re.findall(r"<h4><span>([^<]+)</span>", html)
    # prediction errors grow with the image's number; img-5 is in the training split
    assert shown == ["img-0", "img-1", "img-3", "img-4"]
    assert "segmenter, round 1" in page.words
    pictures = re.findall(r'src="(data:[^"]+)"', html)
    assert len(pictures) == 4 * 5
    for column in ("image", "CAM", "pseudo-mask", "prediction", "truth"):
        assert f"<figcaption>{column}</figcaption>" in html
    legend = re.findall(r'<i style="background:(#[0-9a-f]{6})"></i>([^<]+)</li>', html)
    assert [name for _, name in legend] == [
        "background",
        "disc",
        "&lt;b&gt;square &amp; co&lt;/b&gt;",
        "not labelled",
    ]
    assert legend[1][0] == "#" + bytes(SPACE.palette[1]).hex()
    truth = Image.open(io.BytesIO(base64.b64decode(pictures[4].split(",")[1])))
    assert truth.mode == "P"
    assert truth.convert("RGB").getpixel((60, 75)) == tuple(SPACE.palette[1])


def test_a_row_that_the_index_of_a_stage_leaves_out_is_not_shown(full_run: RunFolder) -> None:
    before, _ = read_page(full_run)
    [folder] = full_run.root.glob("evaluate-predict_masks-r1-val-*")
    *_, worst = tables.read_table(str(folder / "part-0.parquet")).to_pylist()
    left_over = [worst | {"image_id": "img-0"}]  # of an attempt that was cut off
    tables.write_rows(str(folder / "part-z.parquet"), left_over, tables.EVALUATION)
    assert read_page(full_run)[0] == before


def test_a_stage_that_is_not_finished_is_shown_as_far_as_it_came(full_run: RunFolder) -> None:
    [folder] = full_run.root.glob("make_cams-*")
    for name in ("index.parquet", "summary.json"):
        (folder / name).unlink()
    assert "<figcaption>CAM</figcaption>" in read_page(full_run)[0]


def test_a_run_without_ground_truth_and_segmenter(make_run: Callable[..., RunFolder]) -> None:
    run = make_run(truth=False)
    run.cams()
    run.masks("make_masks", 0)
    html, page = read_page(run)
    assert "No masks were evaluated" in page.words
    assert "The first images by id" in page.words
    assert "<figcaption>truth</figcaption>" not in html
    assert "<figcaption>prediction</figcaption>" not in html
    assert "Pixel labels used None." in page.words


def test_an_aborted_run(make_run: Callable[..., RunFolder]) -> None:
    run = make_run()
    error = ErrorRow("img-3", "make_cams", "internal", "out of luck")
    run.stage("make_cams", errors=[error], finish=False)
    _, page = read_page(run)
    assert "not finished, 1 errors so far" in page.words
    assert "out of luck" in page.words
    assert [row.done for row in rows_of(load_run(run.uri))] == [False]


def test_a_run_with_nothing_in_it_and_with_missing_photographs(
    make_run: Callable[..., RunFolder],
) -> None:
    run = make_run()
    (run.root / "resolved.yaml").unlink()
    (run.root / "data" / "img-0.jpg").unlink()
    _, page = read_page(run)
    assert "No stage has run" in page.words
    assert "none" in page.words
    (run.root / "data" / "manifest.parquet").unlink()
    _, page = read_page(run)
    assert "No pictures: no manifest at" in page.words
    run.write_record(manifest=None)
    read_page(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="not a run folder"):
        build_report(str(tmp_path))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CannotRunError, match="not valid JSON"):
        build_report(str(tmp_path))


def test_an_evaluation_that_found_no_truth_is_a_dash(make_run: Callable[..., RunFolder]) -> None:
    run = make_run()
    run.stage(
        "evaluate-make_masks",
        metrics={"mean_iou": float("nan"), "pixel_accuracy": float("nan")},
        details={"title": "PPMG", "split": "val", "class_iou": {"disc": None}},
    )
    _, page = read_page(run)
    assert "PPMG – pixel accuracy –" in page.words


def test_the_stage_table_puts_scores_beside_the_masks(full_run: RunFolder) -> None:
    rows = {row.stage: row for row in rows_of(load_run(full_run.uri))}
    assert not any(name.startswith("evaluate-") for name in rows)
    assert set(rows["make_masks"].mean_iou) == {"val"}
    assert set(rows["predict_masks-r1"].mean_iou) == {"train"}
    assert rows["import_data"].errors == 2
    out = io.StringIO()
    print_stage_table(full_run.uri, Console(file=out, width=100))
    score = rows["make_masks"].mean_iou["val"]
    line = next(line for line in out.getvalue().splitlines() if line.startswith("make_masks "))
    assert line.split() == ["make_masks", "6", "0", "12.5", "3.2", f"{score * 100:.1f}", "val"]


def test_the_stage_table_is_whole_in_a_narrow_terminal(full_run: RunFolder) -> None:
    out, wide = io.StringIO(), io.StringIO()
    print_stage_table(full_run.uri, Console(file=out, width=30))
    print_stage_table(full_run.uri, Console(file=wide, width=300))
    assert "\u2026" not in out.getvalue()
    assert out.getvalue().split() == wide.getvalue().split()


def test_sweeps_are_shown_and_the_cells_of_tables_are_not(
    make_run: Callable[..., RunFolder],
) -> None:
    rows = [{"alpha": a, "mean_iou": a / 10, "pixel_accuracy": 0.5} for a in (3.0, 5.0)]
    details = {"split": "val", "method": "ppmg", "fields": ["alpha"], "combinations": rows}
    details["chosen"] = {"alpha": 5.0}
    run = make_run()
    for stage in ("sweep_masks", "sweep_masks-alpha", "sweep_masks-recipe-ppmg"):
        run.stage(stage, details=details)
    html, _ = read_page(run)
    assert html.count("Parameter sweep") == 2
    assert "Parameter sweep <small>sweep_masks, val" in html
    assert "Parameter sweep <small>sweep_masks-alpha, val" in html


def test_a_sweep_without_a_score_is_not_shown(make_run: Callable[..., RunFolder]) -> None:
    details = {"split": "val", "method": "ppmg", "fields": ["alpha"], "combinations": []}
    run = make_run()
    run.stage("sweep_masks-alpha", details=details | {"chosen": {}, "not_scored": "no truth"})
    html, _ = read_page(run)
    assert "Parameter sweep" not in html


def test_a_sweep_without_truth_has_a_contact_sheet(make_run: Callable[..., RunFolder]) -> None:
    run = make_run(truth=False)
    masks = [np.zeros((30, 48), np.uint8) for _ in range(14)]
    for number, mask in enumerate(masks):
        mask[:, : 3 * number] = 1
    numbers = {name: [0.5] for name in ("whole", "hidden", "object", "rest", "area")}
    rows = [
        {"image_id": i, **numbers, "masks": [encode_mask(m, SPACE) for m in masks] if n < 2 else []}
        for n, i in enumerate(run.ids)
    ]
    settings = [{"alpha": 1.0 + n, "lift": n / 20, "area": n / 16} for n in range(14)]
    details = {"split": "all splits", "method": "ppmg", "fields": ["alpha"], "sheet": run.ids[:2]}
    details |= {"combinations": settings, "chosen": {"alpha": 14.0}}
    run.stage("judge_masks", rows, JUDGED, details=details)
    html, _ = read_page(run)
    assert "masks.alpha 14, without ground truth" in html
    assert "the best 12 of 14 settings" in html
    for n, setting in enumerate(settings):
        caption = f"<figcaption>alpha {setting['alpha']:g}</figcaption>"
        assert html.count(caption) == (2 if n >= 2 else 0)
    assert "disc" in html.split("Contact sheet")[1]


def test_a_mask_tints_the_photograph_where_it_has_a_class() -> None:
    photo = Image.new("RGB", (40, 20), (100, 100, 100))
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 10:] = 1
    drawn = np.asarray(overlay_mask(photo, mask, SPACE)).astype(int)
    assert (drawn[:, :20] == 100).all()
    towards = SPACE.palette[1].astype(int) - 100
    assert (np.sign(drawn[:, 20:] - 100) == np.sign(towards)).all()


def test_where_nothing_could_be_chosen_the_page_says_so(make_run: Callable[..., RunFolder]) -> None:
    rows = [{"alpha": a, "lift": None, "area": 0.1} for a in (3.0, 5.0)]
    details = {"split": "all splits", "method": "ppmg", "fields": ["alpha"], "combinations": rows}
    run = make_run()
    run.stage("judge_masks", details=details | {"chosen": {}, "sheet": []})
    html, _ = read_page(run)
    assert "nothing chosen: the classifier sees no class" in html
