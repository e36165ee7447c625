"""`precision: auto` is resolved once per run folder: cards that join later change no result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pmm_ray.commands.run import run_recipe
from pmm_ray.runtime.core.resources import ACCELERATOR, ClusterResources, Node
from pmm_ray.runtime.core.session import Session

from .rehearsal import CLUSTER, rehearse

RECIPE = Path(__file__).parents[1] / "recipes" / "shapes.yaml"
CPUS = replace(CLUSTER, gpus=0, offered=())


def cards(*names: str) -> ClusterResources:
    offered = tuple(Node(8, 2, labels={ACCELERATOR: name}) for name in names)
    return replace(CLUSTER, offered=offered)


def stages_of(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: ClusterResources,
    asked: str = "auto",
    **selected: Any,
) -> tuple[str, str, str]:
    """(what `resolved.yaml` says of CAMs, the hashes of CAMs and of predictions)."""
    weights = place / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    # the number of workers is another matter
    settings = ["cycles.rounds=0", "classifier.workers=1", "segmenter.workers=1"]
    settings += [f"{name}.precision={asked}" for name in ("cams", "predict")]
    with monkeypatch.context() as patch:
        seen = rehearse(patch, weights)
        patch.setattr(Session, "cluster", property(lambda session: cluster))
        run_dir = str(place / "run")
        assert run_recipe(RECIPE, run_dir=run_dir, settings=settings, **selected) == 0
    resolved = yaml.safe_load((place / "run" / "resolved.yaml").read_text())
    made = dict(seen)
    return resolved["cams"]["precision"], made["make_cams"], made.get("predict_masks-r0-val", "")


def test_a_folder_keeps_what_its_first_run_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpus = stages_of(tmp_path / "cpus", monkeypatch, CPUS)
    assert on_cpus[0] == "float32"
    on_gpus = stages_of(tmp_path / "gpus", monkeypatch, cards("A10G", "L4"))
    assert on_gpus[0] == "bfloat16"
    assert on_gpus[1] != on_cpus[1]
    assert on_gpus[2] != on_cpus[2]
    # one old card is enough: it would make other maps than the rest
    assert stages_of(tmp_path / "mixed", monkeypatch, cards("A10G", "T4")) == on_cpus
    # the same folders on other clusters
    assert stages_of(tmp_path / "cpus", monkeypatch, cards("H100")) == on_cpus
    assert stages_of(tmp_path / "gpus", monkeypatch, cards("A10G", "T4")) == on_gpus


def test_part_of_a_folder_that_is_made_anew_keeps_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpus = stages_of(tmp_path, monkeypatch, cards("A10G"))
    part = stages_of(tmp_path, monkeypatch, CPUS, fresh=True, only="make_cams")
    assert part[:2] == on_gpus[:2]
    # the whole anew may take what is there now
    assert stages_of(tmp_path, monkeypatch, CPUS, fresh=True)[0] == "float32"


def test_what_is_asked_for_is_what_auto_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        asked: stages_of(tmp_path / asked, monkeypatch, CPUS, asked)
        for asked in ("auto", "float32", "bfloat16")
    }
    assert found["auto"] == found["float32"]
    assert found["bfloat16"][1] != found["float32"][1]
