"""The segmenter in the training loop: exact resume, validation, the choice of weights, layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pmm_ray.config import RunConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.method.confusion import confusion_matrix, mean_iou
from pmm_ray.nets.checkpoints import load_model
from pmm_ray.nets.segmenter import build_segmenter, describe, load_segmenter, predict_logits
from pmm_ray.nets.segmenter_source import read_model
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime import storage, tables
from pmm_ray.runtime.events import read_events
from pmm_ray.runtime.images import decode_mask
from pmm_ray.runtime.stage import StageFolder
from pmm_ray.runtime.train_checkpoint import checkpoints
from pmm_ray.runtime.train_worker import _Worker
from pmm_ray.runtime.training import UNDERFITTING
from pmm_ray.runtime.training_job import TrainingJob
from pmm_ray.sources.manifest import Manifest
from pmm_ray.stages.photographs import Photographs
from pmm_ray.stages.segmenter_validation import MIOU, SegmenterValidation
from pmm_ray.stages.train_classifier import image_source
from pmm_ray.stages.train_segmenter import SegmenterTask, model_identity

STEPS = 6
SECTION: dict[str, Any] = {"weights": "none", "channels": 8, "output_stride": 32, "crop_size": 48}
SECTION |= {"resize_base": [96, 48], "iterations": STEPS, "batch_size": 4, "dropout": 0.3}


def section(**more: Any) -> Any:
    return RunConfig.model_validate({"segmenter": {**SECTION, **more}}).segmenter


@dataclasses.dataclass
class WatchedTask(SegmenterTask):
    """Stops before a step; may score what it is told to."""

    stop_at: int = -1
    scores: tuple[float, ...] = ()

    def learning_rate(self, step: int, steps: int) -> float:
        if step == self.stop_at:
            raise RuntimeError("told to stop here")
        return super().learning_rate(step, steps)

    def metrics(self, shares: list[Any]) -> dict[str, float]:
        if not self.scores:
            return super().metrics(shares)
        first, *rest = self.scores
        self.scores = (*rest, first)
        return {MIOU: first}


@pytest.fixture(scope="module")
def masks_uri(shapes: Manifest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The truth as pseudo-masks."""
    rows = []
    for row in tables.read_table(shapes.uri).to_pylist():
        png = storage.read_bytes(shapes.locate(row["ground_truth_uri"]))
        kept = {name: row[name] for name in ("image_id", "height", "width", "labels")}
        rows.append({**kept, "mask_png": png, "foreground": 0.5, "round": 0})
    folder = tmp_path_factory.mktemp("masks")
    tables.write_rows(str(folder / "part-0.parquet"), rows, tables.MASKS)
    return str(folder)


def validation(manifest: Manifest, split: str = "val") -> SegmenterValidation:
    photographs = Photographs(manifest.root, manifest.apply_exif, 10**7, manifest.label_space)
    return SegmenterValidation(manifest.uri, split, photographs, None, (96, 48), 0)


def job(
    manifest: Manifest, masks_uri: str, run_dir: Path, config: Any, **changes: Any
) -> TrainingJob:
    names = ("stop_at", "scores", "validation", "model")
    options = {name: changes.pop(name) for name in names if name in changes}
    task = WatchedTask(
        config=config,
        stage="stage",
        round=0,
        seed=3,
        split="train",
        manifest_uri=manifest.uri,
        masks_uri=masks_uri,
        source=image_source(manifest, 10**7),
        label_space=manifest.label_space.to_json(),
        **options,
    )
    folder = StageFolder.below(str(run_dir), "stage", "0")
    values: dict[str, Any] = {
        "stage": "stage",
        "task": task,
        "run_dir": str(run_dir),
        "model_uri": folder.path("model.pt"),
        "checkpoints_uri": folder.path("train"),
        "errors_uri": folder.errors_uri,
        "error_budget": 10,
        "fingerprint": "f",
        "seed": 3,
        "images": manifest.splits["train"],
        "steps": STEPS,
        "batch_size": 4,
        "momentum": 0.9,
        "amp": False,
        "workers": 1,
        "threads": 1,
        "loader_processes": 0,
        "checkpoint_seconds": 1e-9,
        "scratch": run_dir,
        "accumulate": config.accumulate,
        "clip_norm": config.clip_norm,
    }
    return TrainingJob(**{**values, **changes})


@pytest.fixture
def group() -> Iterator[None]:
    threads = torch.get_num_threads()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def train(job: TrainingJob) -> dict[str, Any]:
    remote = SimpleNamespace(remote=lambda *_: None)
    reporter = SimpleNamespace(update=remote, failed=remote)
    return _Worker(job, reporter, 0, 1, torch.device("cpu")).run()


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in read_events(str(run_dir), "train_step")]


def validated(run_dir: Path) -> list[tuple[int, float]]:
    return [(event["step"], event[MIOU]) for event in read_events(str(run_dir), "validation")]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_loss_curve_after_a_resume_is_the_uninterrupted_one(
    shapes: Manifest, masks_uri: str, group: None, tmp_path: Path, optimizer: str
) -> None:
    """Bit for bit: dropout, augmentation, momentum, accumulation, validation, chosen weights."""
    config = section(accumulate=2, clip_norm=5.0)
    options: dict[str, Any] = {"validate_every": 2, "choose_by": MIOU, "optimizer": optimizer}
    options |= {"validation": validation(shapes)}
    whole = job(shapes, masks_uri, tmp_path / "whole", config, **options)
    result = train(whole)
    stopped = job(shapes, masks_uri, tmp_path / "parts", config, stop_at=3, **options)
    with pytest.raises(RuntimeError, match="told to stop"):
        train(stopped)
    assert checkpoints(stopped.checkpoints_uri)[-1][0] == 3
    again = job(shapes, masks_uri, tmp_path / "parts", config, **options)
    assert train(again)["chosen_step"] == result["chosen_step"]
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
        scores=scores,
        validate_every=2,
        choose_by=MIOU,
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


def test_validation_is_the_evaluators_miou_whatever_the_number_of_workers(
    shapes: Manifest,
) -> None:
    torch.manual_seed(0)
    network = build_segmenter(section(), 4, 255).eval()
    about = describe(network)
    total = np.zeros((4, 4), np.int64)
    this = validation(shapes)
    assert len(this.rows()) == shapes.splits["val"]
    for row in this.rows():
        image_HW3 = this.photographs.image(row)
        pixels = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)[None]
        truth = decode_mask(storage.read_bytes(shapes.locate(row["ground_truth_uri"])))
        size = max(image_HW3.shape[:2]), min(image_HW3.shape[:2])
        exact = dataclasses.replace(this, resize_base=size)
        with torch.no_grad():
            views = normalise_views(pixels, about.input_mean, about.input_std)
            predicted = predict_logits(network, views)[0].argmax(0).numpy()
        assert np.array_equal(exact._predict(network, image_HW3, torch.device("cpu")), predicted)
        total += confusion_matrix(
            truth, this._predict(network, image_HW3, torch.device("cpu")), 4, 255
        )
    want = mean_iou(total)[0]
    for world in (1, 3):
        shares = [this.measure(network, torch.device("cpu"), r, world) for r in range(world)]
        assert this.metrics(shares) == {MIOU: want}
    assert validation(shapes, "nothing").metrics([np.zeros((4, 4), np.int64)]) == {}


def space_with_gaps(manifest: Manifest) -> LabelSpace:
    """The data set's classes under ids 0, 2, 5, 6."""
    return dataclasses.replace(manifest.label_space, dataset_ids=(0, 2, 5, 6))


def test_both_layouts_train_and_score_alike(
    shapes: Manifest, masks_uri: str, group: None, tmp_path: Path
) -> None:
    """The same weights in the outputs of the classes: the same curve, the same predictions."""
    gaps = space_with_gaps(shapes)
    found = {}
    for layout in ("contiguous", "dataset"):
        this = job(shapes, masks_uri, tmp_path / layout, section(layout=layout))
        task = dataclasses.replace(this.task, label_space=gaps.to_json())  # type: ignore[type-var]
        this = dataclasses.replace(this, task=task)
        original = task.build  # type: ignore[attr-defined]

        def build(original: Any = original, layout: str = layout) -> Any:
            module = original()
            outputs = describe(module.network).outputs
            assert outputs == (None if layout == "contiguous" else (0, 2, 5, 6))
            generator = torch.Generator().manual_seed(0)
            for name, parameter in module.network.named_parameters():
                rows = len(parameter)
                if "conv_seg" in name:
                    values = torch.randn(4, *parameter.shape[1:], generator=generator) * 0.01
                    wide = torch.full(parameter.shape, 3.0)
                    wide[list(outputs or range(rows))] = values
                else:
                    wide = torch.randn(parameter.shape, generator=generator) * 0.05
                parameter.data.copy_(wide)
            return module

        task.build = build  # type: ignore[attr-defined]
        train(this)
        network, meta = load_segmenter(this.model_uri)
        assert describe(network).model["decode_head"]["num_classes"] == (
            4 if layout == "contiguous" else 7
        )
        assert meta["num_classes"] == 4
        [share] = [validation(shapes).measure(network, torch.device("cpu"), 0, 1)]
        found[layout] = (losses(tmp_path / layout), share)
    (curve, share), (other_curve, other_share) = found.values()
    assert [v for _, v in other_curve] == pytest.approx([v for _, v in curve], rel=1e-3)
    assert share.sum() == other_share.sum()
    assert (share != other_share).sum() <= 2


def test_the_same_predictions_score_the_same_in_either_layout() -> None:
    """Logits of 81 classes spread over 91 outputs, noise in the ten others: equal mIoU."""
    from pmm_ray.labels import COCO14

    ids = list(COCO14.dataset_ids)
    assert (COCO14.num_classes, max(ids) + 1) == (81, 91)
    config = section(channels=4)
    torch.manual_seed(0)
    narrow = build_segmenter(config, 81, 255).eval()
    wide = build_segmenter(config, 81, 255, outputs=ids).eval()
    state = narrow.state_dict()
    for name, tensor in wide.state_dict().items():
        if tensor.shape == state[name].shape:
            tensor.copy_(state[name])
        else:
            tensor.fill_(100.0)  # invalid ids would win everywhere
            tensor[ids] = state[name]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 48, 48, generator=generator)
    truth = torch.randint(0, 81, (2, 48, 48), generator=generator).numpy().astype(np.uint8)
    truth[:, :5] = 255
    with torch.no_grad():
        predictions = [predict_logits(n, images).argmax(1).numpy() for n in (narrow, wide)]
    assert np.array_equal(*predictions)
    contiguous = confusion_matrix(truth, predictions[0], 81, 255)
    # and counted in the data set's own ids: no truth, no prediction in the ten
    originals = [COCO14.to_dataset(m.astype(np.uint8)) for m in (truth, predictions[1])]
    original = confusion_matrix(*originals, 91, 255)
    assert mean_iou(original)[0] == pytest.approx(mean_iou(contiguous)[0], abs=1e-12)
    assert np.array_equal(original[np.ix_(ids, ids)], contiguous)


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


def test_targets_are_the_data_sets_ids_only_where_the_layout_says_so(
    shapes: Manifest, masks_uri: str, tmp_path: Path
) -> None:
    gaps = space_with_gaps(shapes)
    seen: dict[str, set[int]] = {}
    for layout in ("contiguous", "dataset"):
        this = job(shapes, masks_uri, tmp_path / layout, section(layout=layout))
        task = dataclasses.replace(this.task, label_space=gaps.to_json())  # type: ignore[type-var]
        task.prepare(tmp_path)
        targets: list[Tensor] = [task.dataset()[0, i][1] for i in range(len(task.dataset()))]
        seen[layout] = set(torch.cat([t.flatten() for t in targets]).unique().tolist())
    assert seen["contiguous"] <= {0, 1, 2, 3, 255}
    assert seen["dataset"] == {{0: 0, 1: 2, 2: 5, 3: 6}.get(v, v) for v in seen["contiguous"]}
