"""`benchmarks/claims.py`: its steps, its bootstrap and verdicts, its page; all on shapes."""

from __future__ import annotations

import importlib
import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmm_ray.config import load_recipe
from pmm_ray.method.confusion import confusion_matrix, mean_iou, to_sparse
from pmm_ray.runtime.core.resources import ClusterResources

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
claims: Any = importlib.import_module("claims")
claims_page: Any = importlib.import_module("claims_page")
claims_results: Any = importlib.import_module("claims_results")
claims_rows: Any = importlib.import_module("claims_rows")
claims_score: Any = importlib.import_module("claims_score")
CLASSES = 3


def photographs(wrong: float, count: int = 40) -> Any:
    """Scores of masks whose pixels are wrong with some probability, each photograph its own."""
    counts = {}
    for number in range(count):
        random = np.random.default_rng(number)
        truth = random.integers(0, CLASSES, 400)
        mask = np.where(random.random(400) < wrong, (truth + 1) % CLASSES, truth)
        cells, found = to_sparse(confusion_matrix(truth, mask, CLASSES, 255))
        three = claims_score.three(cells.tolist(), found.tolist(), CLASSES)
        counts[f"photo-{number}"] = three[None]
    return claims_score.Scored.of(counts)


def test_the_mean_iou_is_the_packages() -> None:
    random = np.random.default_rng(0)
    matrix = confusion_matrix(*random.integers(0, CLASSES - 1, (2, 500)), CLASSES, 255)
    matrix[0, CLASSES - 1] = 7  # a class without truth
    cells, counts = to_sparse(matrix)
    three = claims_score.three(cells.tolist(), counts.tolist(), CLASSES)
    assert claims_score.mean_ious(three[None])[0] == pytest.approx(mean_iou(matrix)[0])


def test_what_is_better_on_every_photograph_holds_and_its_reverse_does_not() -> None:
    good, bad = photographs(0.1), photographs(0.3)
    found = claims_score.compare([(good, bad)])
    assert 0 < found["low"] < found["gain"] < found["high"]
    assert found["gain"] == pytest.approx(found["after"][0] - found["before"][0])
    assert found["photographs"] == 40
    assert claims_score.verdict(found) == "holds"
    assert claims_score.verdict(claims_score.compare([(bad, good)])) == "does not"
    assert claims_score.changes(good, bad)[0][0] > 0


def test_equal_sides_and_seeds_that_disagree_decide_nothing() -> None:
    good, bad = photographs(0.1), photographs(0.3)
    same = claims_score.compare([(good, good)])
    assert (same["low"], same["gain"], same["high"]) == (0, 0, 0)
    both = claims_score.compare([(good, bad), (bad, good)])
    assert both["gain"] == pytest.approx(0)
    for found in (same, both):
        assert claims_score.verdict(found) == "not decided here"
    assert claims_score.verdict(None) == "not run"
    assert claims_score.verdict(both, "why") == "not measurable here: why"


def test_the_interval_is_as_wide_as_the_photographs_differ() -> None:
    good, bad = photographs(0.1, 100), photographs(0.1, 100)
    worse = photographs(0.9, 100).counts
    mixed = {i: worse[i] if n % 2 else bad.counts[i] for n, i in enumerate(bad.counts)}
    found = claims_score.compare([(good, claims_score.Scored.of(mixed))])
    # half of the photographs lose all: the share among 100 drawn has a deviation of 5 %
    assert 10 < found["high"] - found["low"] < 20


def test_each_side_has_its_best_exponent() -> None:
    good, bad = photographs(0.1), photographs(0.5)
    swept = {i: np.concatenate([bad.counts[i], good.counts[i]]) for i in good.counts}
    found = claims_score.Scored.of(swept)
    assert found.best == 1
    assert claims_score.compare([(found, good)])["gain"] == 0
    assert [change for change, _ in claims_score.changes(found, good)] == [0] * 40


def test_every_side_is_a_stage_of_its_unit() -> None:
    names = {}
    for unit in claims_rows.UNITS:
        config = load_recipe(claims.RECIPE, [*claims.REDUCED, *unit.settings, "data.root=x"])
        steps = [step.name for step in unit.steps(config)]
        assert len(set(steps)) == len(steps)
        names[unit.name] = steps
    rows = list(claims_rows.claims())
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        for side in (row.after, row.before):
            assert any(fnmatchcase(name, side.stage) for name in names[side.unit]), side
            assert not side.cams or side.cams in names[side.unit]
        assert not row.limited or f"train_segmenter-{row.limited}-r0" in names[row.limited]


def test_multicrop_training_is_the_classifiers() -> None:
    config = load_recipe(claims.RECIPE, claims.with_classifier(claims.RECIPE, claims.FULL))
    for name in claims._CLASSIFIER:
        assert getattr(config.multicrop, name) == getattr(config.classifier, name)


def test_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []

    def do(unit: Any, place: Path, config: Any, log: Path) -> dict[str, str]:
        done.append((place.name, unit.name))
        return {}

    monkeypatch.setattr(claims, "do", do)
    file, units = tmp_path / "claims.json", claims_rows.UNITS[:2]
    results: dict[str, Any] = {"seeds": {}}
    setting = ("data.root=x",)
    claims.work(results, file, units, [0], setting, claims.RECIPE, -1.0)
    assert not done
    claims.work(results, file, units[:1], [0], setting, claims.RECIPE, None)
    again = json.loads(file.read_text())
    claims.work(again, file, units, [0, 1], setting, claims.RECIPE, None)
    first, second = (unit.name for unit in units)
    assert done == [("seed-0", first), ("seed-0", second), ("seed-1", first), ("seed-1", second)]


def test_an_exponent_that_one_side_alone_could_choose_decides_nothing() -> None:
    assert claims_results.one_search([[3.0, 5.0]]) == ""
    assert claims_results.one_search([[None, None]]) == ""
    assert claims_results.one_search([[3.0, 5.0], [3.0, None]]) != ""


def test_the_page_is_the_table_of_a_file_between_words_that_stay(tmp_path: Path) -> None:
    row = {"name": "a", "title": "A over B", "source": "Tab. 1", "paper": "+1.0", "limited": []}
    compared = claims_score.compare([(photographs(0.1), photographs(0.3))])
    measured = {**row, **compared, "seeds": [0], "exponents": [[3.0, None]]}
    results = {
        "about": {"date": "2026-01-01", "machine": "m", "command": "c"},
        "rows": [
            measured | {"verdict": "holds"},
            row | {"title": "C over D", "seeds": [], "verdict": "not run"},
        ],
        "classes": ["background", "cat", "dog"],
        "trainings": [{"seed": 0, "stage": "train_segmenter-clamp-r0", "loss": 0.4}],
        "seeds": {"0": {"masks": {"folders": {}, "seconds": 12.0, "commit": "abc"}}},
        "settings": ["a.b=1"],
    }
    document = tmp_path / "page.md"
    document.write_text("before\n{}\nold\n{}\nafter\n".format(*claims_page.MARKERS))
    claims_page.write_page(json.loads(json.dumps(results)), document)
    text = document.read_text()
    assert text.startswith("before\n")
    assert "2026-01-01, commit abc, m:" in text
    assert text.endswith("\nafter\n")
    assert "\nold\n" not in text
    table = [line for line in text.splitlines() if line.startswith("|") and " over " in line]
    assert "| -, 3 |" in table.pop()
    assert table[0].endswith("| 0 | **holds** |")
    assert "not run" in table[1]
    assert {line.count("|") for line in table} == {8}
    assert "| clamp-r0 | 0 | 0.40 | - |" in text


SMALL = (
    *("data.images=16", "data.size=48", "data.classes=2"),
    *("classifier.epochs=1", "classifier.batch_size=4", "classifier.crop_size=48"),
    *("classifier.resize_long=[48, 64]", "classifier.workers=1", "cams.scales=[1.0]"),
    *("base.cams.scales=[1.0]", "multicrop.crops.size=32", "multicrop.crops.stride=32"),
    *("multicrop.crops.scales=[1.0]", "multicrop.workers=1"),
    *("segmenter.iterations=2", "segmenter.batch_size=2", "segmenter.channels=8"),
    *("segmenter.crop_size=64", "segmenter.resize_base=[96, 64]", "segmenter.workers=1"),
    *("segmenter.validation_images=0", "segmenter.underfitting.beta=9", "predict.flip=false"),
    *("affinity.epochs=1", "affinity.batch_size=4", "affinity.crop_size=48"),
    *("affinity.workers=1", "predict.ratios=[1.0]", "predict.resize_base=[96, 64]"),
    *("predict.crf.iterations=1", "ablate.alphas=[1, 5]"),
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_rows_of_a_small_run(ray_session: ClusterResources, tmp_path: Path) -> None:
    shapes = str(ROOT / "recipes" / "shapes.yaml")
    command = [str(tmp_path), "--voc", str(tmp_path), "--recipe", shapes]
    found = claims.main([*command, *(f"--set={setting}" for setting in SMALL)])
    assert all(row["seeds"] == [0] for row in found["rows"])
    assert len(list((tmp_path / "pictures").glob("*.png"))) == len(found["rows"])
    assert all(row["limited"] == [1.0] for row in found["rows"] if row["limited"])
