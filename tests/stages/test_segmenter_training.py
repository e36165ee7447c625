"""The segmenter in the training loop: exact resume, under-fitting, the choice of weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pmm_ray.nets.checkpoints import load_model
from pmm_ray.nets.segmenter import load_segmenter
from pmm_ray.nets.segmenter_source import read_model
from pmm_ray.nets.segmenter_validation import MIOU
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.training.checkpoint import checkpoints
from pmm_ray.runtime.training.train import UNDERFITTING
from pmm_ray.stages.train_segmenter import model_identity

from ..training import losses, train
from .segmenter_job import STEPS, Told, job, section, validated, validation


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_loss_curve_after_a_resume_is_the_uninterrupted_one(
    shapes: Manifest, masks_uri: str, group: None, tmp_path: Path, optimizer: str
) -> None:
    """Bit for bit: dropout, augmentation, momentum, accumulation, validation, chosen weights."""
    config = section(accumulate=2, clip_norm=5.0)
    options: dict[str, Any] = {"validate_every": 2, "optimizer": optimizer}
    options |= {"validation": validation(shapes)}
    whole = job(shapes, masks_uri, tmp_path / "whole", config, **options)
    result = train(whole)
    stopped = job(shapes, masks_uri, tmp_path / "parts", config, stop_at=3, **options)
    with pytest.raises(RuntimeError, match="told to stop"):
        train(stopped)
    assert checkpoints(stopped.checkpoints_uri)[-1][0] == 3
    again = job(shapes, masks_uri, tmp_path / "parts", config, **options)
    resumed = train(again)
    assert resumed["chosen_step"] == result["chosen_step"]
    assert resumed["loss"] == result["loss"]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert validated(tmp_path / "parts") == validated(tmp_path / "whole")
    assert [step for step, _ in validated(tmp_path / "whole")] == [2, 4, 6]
    assert len({loss for _, loss in losses(tmp_path / "whole")}) == STEPS
    want, got = (load_segmenter(j.model_uri)[0].state_dict() for j in (whole, again))
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


@pytest.mark.parametrize("stop_at", [None, 4])
def test_how_far_underfitting_was_pretended_is_measured(
    shapes: Manifest, masks_uri: str, group: None, tmp_path: Path, stop_at: int | None
) -> None:
    """The share at each step, and over all of them, whether or not the training was cut off."""
    config = section(accumulate=2, underfitting={"kind": "clamp", "beta": 1.35, "kappa": 0.5})
    this = job(shapes, masks_uri, tmp_path, config)
    if stop_at is not None:
        stopped = job(shapes, masks_uri, tmp_path, config, stop_at=stop_at)
        with pytest.raises(RuntimeError, match="told to stop"):
            train(stopped)
    result = train(this)
    events = read_events(str(tmp_path), "train_step")
    shares = {event["step"]: event[UNDERFITTING] for event in events}
    assert sorted(shares) == list(range(1, STEPS + 1))
    # two heads and two passes: quarters
    assert set(shares.values()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert len(set(shares.values())) > 1
    assert result[UNDERFITTING] == pytest.approx(sum(shares.values()) / STEPS)


def test_without_underfitting_there_is_no_such_share(
    shapes: Manifest, masks_uri: str, group: None, tmp_path: Path
) -> None:
    result = train(job(shapes, masks_uri, tmp_path, section(underfitting={"kind": "none"})))
    assert UNDERFITTING not in result
    assert not any(UNDERFITTING in event for event in read_events(str(tmp_path), "train_step"))


def test_accumulation_keeps_the_batch(
    shapes: Manifest, masks_uri: str, group: None, tmp_path: Path
) -> None:
    """With frozen norms and no dropout, two passes of two images are one of four."""
    curves = []
    for passes in (1, 2):
        plain = {"underfitting": {"kind": "none"}, "freeze_norm": True, "dropout": 0.0}
        # heads have norms of their own: kept at their first statistics as well
        config = section(accumulate=passes, auxiliary_weight=0.0, **plain)
        this = job(shapes, masks_uri, tmp_path / str(passes), config)
        original = this.task.build

        def build(original: Any = original) -> Any:
            module = original()
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.momentum = 0.0
                    norm.forward = lambda x, n=norm: nn.functional.batch_norm(  # type: ignore[method-assign]
                        x, n.running_mean, n.running_var, n.weight, n.bias, False, 0.0, n.eps
                    )
            return module

        this.task.build = build  # type: ignore[method-assign]
        train(this)
        curves.append(losses(tmp_path / str(passes)))
    assert [s for s, _ in curves[0]] == [s for s, _ in curves[1]]
    assert [v for _, v in curves[1]] == pytest.approx([v for _, v in curves[0]], rel=1e-4)


@pytest.mark.parametrize(
    ("scores", "chosen"), [((0.1, 0.3, 0.2), 4), ((0.3, 0.3, 0.2), 2), ((0.1, 0.2, 0.3), 6)]
)
def test_the_weights_that_scored_best_are_kept(
    shapes: Manifest,
    masks_uri: str,
    group: None,
    tmp_path: Path,
    scores: tuple[float, ...],
    chosen: int,
) -> None:
    this = job(
        shapes,
        masks_uri,
        tmp_path / "whole",
        section(),
        validation=Told(scores),
        validate_every=2,
    )
    result = train(this)
    assert (result["chosen_step"], result[MIOU]) == (chosen, max(scores))
    _, meta = load_segmenter(this.model_uri)
    assert meta["training"]["chosen_step"] == chosen
    # the weights are those after that step
    short = job(shapes, masks_uri, tmp_path / "short", section(), steps=STEPS, stop_at=chosen)
    if chosen < STEPS:
        with pytest.raises(RuntimeError, match="told to stop"):
            train(short)
        want = torch.load(checkpoints(short.checkpoints_uri)[-1][1], weights_only=True)["network"]
    else:
        train(short)
        want = load_model(short.model_uri, "segmenter")[0]
    got = load_model(this.model_uri, "segmenter")[0]
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


def test_a_users_network_trains_in_the_loop(
    shapes: Manifest, masks_uri: str, group: None, tmp_path: Path
) -> None:
    recipes = Path(__file__).parents[2] / "recipes" / "mmseg"
    source = read_model(str(recipes / "upernet_r18.py"))
    this = job(shapes, masks_uri, tmp_path, section(), model=source, steps=2)
    assert np.isfinite(train(this)["loss"])
    network, _ = load_segmenter(this.model_uri)
    assert type(network.get_submodule("decode_head")).__name__ == "UPerHead"


def test_the_identity_follows_the_files_content(tmp_path: Path) -> None:
    recipes = Path(__file__).parents[2] / "recipes" / "mmseg"
    text = (recipes / "upernet_r18.py").read_text()
    shutil.copytree(recipes / "base", tmp_path / "base")
    names = []
    for name, content in (("a", text), ("b", f"# moved\n{text}"), ("c", text.replace("128", "64"))):
        (tmp_path / f"{name}.py").write_text(content)
        names.append(model_identity(section(config=str(tmp_path / f"{name}.py")), "val"))
    assert names[0] == names[1] != names[2]
    assert model_identity(section(), "val") == ["none"]
    # the split matters where it chooses the weights
    assert model_identity(section(validate_every=2), "val") == ["none", "val"]
    assert model_identity(section(validate_every=2, choose="last"), "val") == ["none"]
    same = [section(choose="last", validate_every=every).identity() for every in (2, 3)]
    assert same[0] == same[1]
    differ = [section(choose="best", validate_every=every).identity() for every in (2, 3)]
    assert differ[0] != differ[1]
