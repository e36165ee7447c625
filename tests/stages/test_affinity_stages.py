"""Labels, training and walk of an affinity network: the workers, the tables, one whole chain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmm_ray.config import AffinityConfig, RunConfig, WalkConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.method.affinity import pair_affinities
from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.masks import background_score
from pmm_ray.method.random_walk import averaged, random_walk
from pmm_ray.nets.affinity import AffinityNetwork, build_affinity, load_affinity
from pmm_ray.nets.backbone import Backbone, FeatureInfo
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import ErrorRow, RowError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import index_file, read_all, read_index
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.cams import walked_mask
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.images import decode_mask, encode_mask
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.loader import TrainingRow
from pmm_ray.runtime.training.mask_file import build_mask_file
from pmm_ray.stages import make_affinity_labels, train_affinity, walk_cams
from pmm_ray.stages.train_affinity import AffinityLoss, PairSample
from pmm_ray.stages.walk_cams import WalkInput, affinities, walked

from .truth_cams import cams_of_truth

MakeContext = Callable[..., RunContext]
CONFIG = RunConfig.model_validate(
    {
        "affinity": {"weights": "none", "epochs": 2, "batch_size": 4, "crop_size": 64}
        | {"workers": 1, "radius": 3}
    }
)
SPACE = LabelSpace.from_names(["a", "b", "c"])


class Colours(Backbone):
    """Three taps of stride 2 that are the picture itself."""

    input_mean = (0.0, 0.0, 0.0)
    input_std = (1.0, 1.0, 1.0)
    features = tuple(FeatureInfo(name, 3, 2) for name in ("a", "b", "c"))

    def forward_features(self, images_B3HW: torch.Tensor) -> list[torch.Tensor]:
        return [torch.nn.functional.avg_pool2d(images_B3HW, 2, ceil_mode=True)] * 3


CPU = torch.device("cpu")


def colours() -> AffinityNetwork:
    torch.manual_seed(0)
    return AffinityNetwork(Colours(), taps=("a", "b"), channels=(4, 4, 4)).eval()


def test_a_walk_is_the_method_s_on_averaged_scores() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 14, 3), np.uint8)
    cam = rng.random((2, 3, 4)).astype(np.float16)
    config = WalkConfig(alpha=6, beta=8, log_steps=2)
    network = colours()
    full = upsample_cam(cam, 9, 14)
    subject = WalkInput.of(image, full, config, CPU)
    (affinity,) = affinities(subject, network, 3, CPU).arrays()
    got = walked(subject, affinity, 3, config)
    assert got.shape == (3, 5, 7)
    scores = averaged(np.concatenate([background_score(full, 6.0)[None], full]), 5, 7)
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        affinity = pair_affinities(network(pixels), 3)[0].numpy()
    want = random_walk(scores, affinity, 3, beta=8, log_steps=2)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    no_walk = random_walk(scores, np.zeros_like(affinity), 3)
    np.testing.assert_allclose(no_walk, scores, rtol=1e-6)
    assert np.abs(got - scores).max() > 0.01


def test_large_images_are_shrunk() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    cam = np.ones((1, 5, 10), np.float16)
    config = WalkConfig(max_long=16, log_steps=0)
    subject = WalkInput.of(image, cam, config, CPU)
    (affinity,) = affinities(subject, colours(), 2, CPU).arrays()
    scores = walked(subject, affinity, 2, config)
    assert scores.shape == (2, 4, 8)
    np.testing.assert_allclose(scores[1], 1.0, rtol=1e-5)


def test_the_class_with_the_largest_walked_score_wins() -> None:
    # raw scores 0.2, 0.6 | 0.5, 0.1 and background 0.3, 0.4: the peaks bring them back
    cam = np.array([[[0.2, 0.6]], [[0.5, 0.1]]]) / np.array([0.6, 0.5])[:, None, None]
    row = {
        "labels": [7, 2],
        "cam": cam.astype("<f2").tobytes(),
        "cam_height": 1,
        "cam_width": 2,
        "background": np.array([[0.3, 0.4]], "<f2").tobytes(),
        "peaks": [0.6, 0.5],
    }
    np.testing.assert_array_equal(walked_mask(row, 1, 2), [[2, 7]])
    row["background"] = np.array([[0.55, 0.4]], "<f2").tobytes()
    np.testing.assert_array_equal(walked_mask(row, 1, 2), [[0, 7]])


def sample_of(
    tmp_path: Path, labels: np.ndarray, size: int, **settings: Any
) -> Callable[[np.ndarray, int], tuple[torch.Tensor, torch.Tensor]]:
    row = {"image_id": "a", "height": labels.shape[0], "width": labels.shape[1], "labels": [1]}
    row |= {"mask_png": encode_mask(labels, SPACE), "foreground": 0.5, "round": 0}
    tables.write_rows(str(tmp_path / "m" / "part-0.parquet"), [row], tables.MASKS)
    masks = build_mask_file(str(tmp_path / "m"), SPACE, tmp_path / "scratch")
    config = AffinityConfig(crop_size=size, color_jitter=0, **settings)
    sample = PairSample(config, SPACE.ignore, masks)
    return lambda image, seed: sample(TrainingRow("a", "a", (1,)), image, seed)


def test_image_and_labels_are_cut_and_mirrored_together(tmp_path: Path) -> None:
    y, x = np.mgrid[:30, :50]
    labels = ((x // 7 + y // 5) % 4).astype(np.uint8)
    image = np.repeat((labels * 60)[..., None], 3, axis=2)
    sample = sample_of(tmp_path, labels, 40)
    seen = set()
    for seed in range(8):
        pixels, target = sample(image, seed)
        again = sample(image, seed)
        assert torch.equal(pixels, again[0])
        assert torch.equal(target, again[1])
        inside = target != SPACE.ignore
        # the image is 30 px high; a crop begins at 0, 8 or 16 of 50 px
        assert inside.sum() in (30 * 40, 30 * 34)
        values = {int(t): set(pixels[0][target == t].tolist()) for t in range(4)}
        assert all(len(found) == 1 for found in values.values())
        assert not pixels[:, ~inside].any()
        seen.add(tuple(target.flatten().tolist()))
    assert len(seen) > 4


def test_labels_of_another_size_are_an_error_row(tmp_path: Path) -> None:
    sample = sample_of(tmp_path, np.zeros((8, 8), np.uint8), 16)
    with pytest.raises(RowError, match=r"mask is \(8, 8\), the image \(9, 8\)"):
        sample(np.zeros((9, 8, 3), np.uint8), 0)


def test_the_loss_reads_labels_at_the_middle_of_a_feature() -> None:
    loss = AffinityLoss(colours(), 2, SPACE.ignore)
    images = torch.rand(2, 3, 8, 8)
    labels = torch.full((2, 8, 8), 1, dtype=torch.int32)
    same = loss(images, labels)
    # of 2 x 2 px the lower right one speaks
    labels[:, ::2, ::2] = 2
    assert torch.equal(loss(images, labels), same)
    labels[:, 1::2, 1::2] = SPACE.ignore
    assert loss(images, labels) == 0


def test_a_cam_that_is_not_finite_is_an_error_row(shapes: Manifest, tmp_path: Path) -> None:
    table = read_all(cams_of_truth(shapes, tmp_path / "cams")).to_pylist()
    manifest = {row["image_id"]: row for row in tables.read_table(shapes.uri).to_pylist()}
    photographs = Photographs(shapes.root, shapes.apply_exif, 10**7, shapes.label_space)
    worker = make_affinity_labels.label_worker(CONFIG.affinity, photographs)
    bad, good = table[:2]
    size = bad["cam_height"] * bad["cam_width"] * len(bad["labels"])
    bad["cam"] = np.full(size, np.nan, "<f2").tobytes()
    rows = [{"cams": row, "manifest": manifest[row["image_id"]]} for row in (bad, good)]
    first, second = worker(rows)
    assert isinstance(first, ErrorRow)
    assert first.kind == "nonfinite"
    assert isinstance(second, dict)
    truth = decode_mask(storage.read_bytes(shapes.locate(rows[1]["manifest"]["ground_truth_uri"])))
    found = decode_mask(second["mask_png"])
    known = found != shapes.label_space.ignore
    assert known.mean() > 0.5
    assert (found == truth)[known].mean() > 0.9


def test_from_cams_to_walked_cams(
    shapes: Manifest, make_context: MakeContext, loop_here: None, tmp_path: Path
) -> None:
    context = make_context(shapes, CONFIG)
    cams_uri = cams_of_truth(shapes, tmp_path / "cams")
    images = index_file(shapes.uri)
    train = index_file(shapes.uri, {"split": ["train"]}).image_ids
    cams = read_index(cams_uri)

    labels = StageFolder.below(context.run_dir, make_affinity_labels.STAGE, "0")
    chosen = cams.select(train)
    made = make_affinity_labels.run(CONFIG.affinity, context, labels, cams=chosen)
    assert made.images == len(train)

    network = StageFolder.below(context.run_dir, train_affinity.STAGE, "0")
    trained = train_affinity.run(CONFIG.affinity, context, network, labels_uri=labels.uri)
    steps = [e["step"] for e in read_events(context.run_dir, "train_step")]
    assert steps == list(range(1, trained.details["steps"] + 1))
    assert trained.details["steps"] == 2 * (len(train) // 4)
    assert not trained.pixel_labels_used
    checkpoint = network.path("model.pt")
    module, meta = load_affinity(checkpoint)
    assert meta["training"]["loss"] == trained.metrics["loss"]
    fresh = build_affinity(CONFIG.affinity).state_dict()
    assert set(fresh) == set(module.state_dict())

    walked = StageFolder.below(context.run_dir, walk_cams.STAGE, "0")
    summary = walk_cams.run(CONFIG.affinity, context, walked, cams=cams, checkpoint_uri=checkpoint)
    assert summary.images == len(images)
    rows = read_all(walked.uri).to_pylist()
    for row in rows:
        shape = (len(row["labels"]), row["cam_height"], row["cam_width"])
        assert shape[1:] == (-(-row["height"] // 8), -(-row["width"] // 8))
        maps = np.frombuffer(row["cam"], "<f2").reshape(shape)
        assert (maps.max(axis=(1, 2)) == 1).all()
        assert maps.min() >= 0
        assert len(row["background"]) == 2 * shape[1] * shape[2]
        # scores are means of the stored ones
        assert 0 < min(row["peaks"]) <= max(row["peaks"]) <= 0.91
    # another process gives the same bytes
    one = next(i for i in range(len(rows)) if rows[i]["image_id"] == train[0])
    photographs = Photographs.of(context)
    worker = walk_cams.walk_worker(checkpoint, CONFIG.affinity, photographs, False)
    manifest = {row["image_id"]: row for row in tables.read_table(shapes.uri).to_pylist()}
    table = {row["image_id"]: row for row in read_all(cams_uri).to_pylist()}
    again = next(iter(worker([{"cams": table[train[0]], "manifest": manifest[train[0]]}])))
    assert again == rows[one] or np.allclose(again["peaks"], rows[one]["peaks"], rtol=1e-4)


def test_labels_of_another_crf_are_other_labels(shapes: Manifest, tmp_path: Path) -> None:
    cams = StageFolder(cams_of_truth(shapes, tmp_path / "cams"), "make_cams", "0")
    hashes = {
        make_affinity_labels.stage(
            AffinityConfig.model_validate({"backend": backend}), DataSet(shapes), cams, "train"
        ).hash
        for backend in ("lattice", "pydensecrf")
    }
    assert len(hashes) == 2


def test_the_alphas_must_be_in_order() -> None:
    with pytest.raises(ValueError, match=r"alpha_low 24 must be below affinity.alpha_high 4"):
        AffinityConfig(alpha_low=24, alpha_high=4)


def test_an_image_of_which_nothing_is_known_costs_nothing() -> None:
    loss = AffinityLoss(colours(), 2, SPACE.ignore)
    labels = torch.full((1, 8, 8), SPACE.ignore, dtype=torch.int32)
    value = loss(torch.rand(1, 3, 8, 8), labels)
    value.backward()
    assert value == 0
