"""Options of the training loop: what they must not change, and what they must."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pmm_ray.config import ClassifierConfig, RunConfig
from pmm_ray.nets.registry import build_classifier, load_classifier
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.training import worker as train_worker
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.runtime.training.train import training_job
from pmm_ray.stages.train_classifier import ClassifierTask, SiameseLoss

from ..training import photographs_of, train
from .test_train_worker import CONFIG, STEPS, job


def state(job: TrainingJob) -> dict[str, torch.Tensor]:
    train(job)
    return load_classifier(job.model_uri)[0].state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 2},
        {"accumulate": 4},
        {"channels_last": True},
        {"clip_norm": 1e9},
        pytest.param({"compile": True}, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
    ids=str,
)
def test_it_learns_the_same_with(
    shapes: Manifest, group: None, tmp_path: Path, options: dict[str, Any]
) -> None:
    want = state(job(shapes, tmp_path / "plain", steps=2))
    got = state(job(shapes, tmp_path / "other", steps=2, **options))
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-5)


def test_gradients_are_scaled_down_to_the_norm(
    shapes: Manifest, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            gradients = [p.grad for g in self.param_groups for p in g["params"]]
            norms.append(math.sqrt(sum(float(g.square().sum()) for g in gradients)))
            super().step(closure)

    monkeypatch.setattr(train_worker.torch.optim, "SGD", Watched)
    train(job(shapes, tmp_path / "free", steps=2))
    free, norms[:] = list(norms), []
    train(job(shapes, tmp_path / "clipped", steps=2, clip_norm=free[0] / 4))
    assert norms[0] == pytest.approx(free[0] / 4, rel=1e-3)
    assert all(norm <= free[0] / 4 * 1.001 for norm in norms)


def test_passes_that_do_not_divide_a_worker_s_share_are_refused(
    shapes: Manifest, make_context: Any
) -> None:
    values = {"batch_size": 4, "workers": 2, "accumulate": 3}
    context = make_context(shapes, RunConfig.model_validate({"classifier": values}))
    folder = StageFolder.below(context.run_dir, "stage", "0")
    with pytest.raises(CannotRunError, match="a worker's 2 images cannot be split evenly over 3"):
        training_job(ClassifierTask.of(context.config.classifier, context, folder), context, folder)


def test_loss_rate_and_throughput_are_events_and_curves(
    shapes: Manifest, group: None, tmp_path: Path
) -> None:
    this = job(shapes, tmp_path)
    train(this)
    events = list(read_events(str(tmp_path), "train_step"))
    assert [event["step"] for event in events] == [*range(1, STEPS + 1)]
    config = CONFIG.classifier
    for event in events:
        rate = config.learning_rate * (1 - (event["step"] - 1) / STEPS) ** config.poly_power
        assert event["learning_rate"] == pytest.approx(rate)
        assert event["images_per_second"] > 0
    board = EventAccumulator(str(tmp_path / "tensorboard" / "stage"))
    board.Reload()
    for name in ("loss", "learning_rate", "images_per_second"):
        points = {point.step: point.value for point in board.Scalars(name)}
        assert points == pytest.approx({event["step"]: event[name] for event in events}, rel=1e-5)


def test_validation_is_an_event_and_a_curve_after_every_epoch(
    shapes: Manifest, group: None, tmp_path: Path
) -> None:
    from pmm_ray.nets.classifier_validation import ClassifierValidation

    plain = job(shapes, tmp_path)
    epoch = plain.images // plain.config.batch_size
    task: Any = plain.task
    photographs = photographs_of(shapes)
    validation = ClassifierValidation(
        shapes.uri, "val", photographs, images=4, long_side=32, seed=0
    )
    task = dataclasses.replace(task, validation=validation)
    train(dataclasses.replace(plain, task=task, steps=2 * epoch))
    events = list(read_events(str(tmp_path), "validation"))
    assert [(event["epoch"], event["step"]) for event in events] == [(1, epoch), (2, 2 * epoch)]
    board = EventAccumulator(str(tmp_path / "tensorboard" / "stage"))
    board.Reload()
    for name in ("mean_average_precision", "cam_miou"):
        values = [point.value for point in board.Scalars(f"validation/{name}")]
        assert values == pytest.approx([event[name] for event in events], rel=1e-5)
    _, meta = load_classifier(plain.model_uri)
    assert meta["training"]["cam_miou"] == events[-1]["cam_miou"]


def test_half_precision_of_the_network_gives_a_float32_loss_that_trains() -> None:
    """What `amp` does on a GPU, on this CPU: bfloat16 convolutions, float32 losses."""
    torch.manual_seed(0)
    config = ClassifierConfig(kind="seam", output_stride=32)
    module = SiameseLoss(build_classifier(config, 3)).train()
    images, targets = torch.rand(1, 3, 40, 40), torch.tensor([[1.0, 0, 1]])
    exact = module(images, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.network(images)[0].dtype == torch.bfloat16
        loss = module(images, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.15)
    loss.backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
