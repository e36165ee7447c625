"""The stages of every recipe and table, and their hashes: what is done stays done.

`pins/RECIPE.json` holds what each command plans and runs over a small fixed manifest. A hash that
changes makes users compute a stage anew: the changelog has to say so. Write the files again with
`PMM_WRITE_PINS=1 pytest tests/test_pins.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pmm_ray.commands.ablate import Ablation, run_table
from pmm_ray.commands.run import run_recipe
from pmm_ray.config import load_recipe
from pmm_ray.pipeline.steps import steps

from .rehearsal import rehearse

PINS = Path(__file__).parent / "pins"
RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = [
    *("shapes", "voc12-animals", "voc12-mini", "voc12", "voc12-released"),
    *("coco14-mini", "coco14", "coco14-released", "coco14-gate-labels"),
]
VARIANTS = {
    "run": [],
    "run, everything on": [
        *("multicrop.enabled=true", "affinity.enabled=true", "masks.alpha=auto"),
        *("cycles.rounds=2", "cycles.update=if_better", "evaluate.train_masks=true"),
    ],
    "run, CAMs streamed": ["masks.fused=true", "masks.alpha=5", "affinity.enabled=false"],
}


def commands(recipe: str) -> list[str]:
    return [*VARIANTS, *(f"table {number}" for number in range(1, 7))]


@pytest.mark.parametrize("recipe", NAMES)
def test_every_stage_keeps_its_name_and_hash(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    seen = rehearse(monkeypatch, weights)
    file = RECIPES / f"{recipe}.yaml"
    found: dict[str, list[str]] = {}
    for number, command in enumerate(commands(recipe)):
        settings = ["data.root=/data", "ablate.alphas=[1, 3]", *VARIANTS.get(command, ())]
        place = str(tmp_path / f"run-{number}")
        seen.clear()
        if command in VARIANTS:
            code = run_recipe(file, run_dir=place, settings=settings)
            found[f"{command}: planned"] = [s.name for s in steps(load_recipe(file, settings))]
        else:
            code = run_table(int(command[-1]), Ablation(file, place, tuple(settings)))
        assert code == 0, capfd.readouterr().err
        found[command] = list(dict.fromkeys(" ".join(stage).strip() for stage in seen))
    pins = PINS / f"{recipe}.json"
    if os.environ.get("PMM_WRITE_PINS"):
        pins.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(pins.read_text())


@pytest.mark.parametrize(("last", "stored"), [("make_cams", True), ("make_masks", False)])
def test_streamed_maps_are_stored_where_they_are_what_is_asked_for(
    last: str, stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    seen = rehearse(monkeypatch, weights)
    settings = ["masks.fused=true", "evaluate.ladder=[]"]
    place = str(tmp_path / "run")
    assert run_recipe(RECIPES / "shapes.yaml", run_dir=place, settings=settings, last=last) == 0
    assert ("make_cams" in [name for name, _ in seen]) is stored


def test_labels_of_images_help_cyclic_masks_but_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    seen = rehearse(monkeypatch, weights)
    hashes = []
    for told in ("true", "false"):
        seen.clear()
        place, settings = str(tmp_path / told), [f"predict.use_image_labels={told}"]
        assert run_recipe(RECIPES / "shapes.yaml", run_dir=place, settings=settings) == 0
        hashes.append(dict(seen))
    with_labels, without = hashes
    held_out = "predict_masks-r0-val"
    assert with_labels[held_out] == without[held_out]
    assert with_labels["predict_masks-r1"] != without["predict_masks-r1"]
