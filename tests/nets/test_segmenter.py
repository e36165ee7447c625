"""The segmenter: shapes, its loss against plain PyTorch, seeded augmentation, saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pmm_ray.config import SegmenterConfig
from pmm_ray.config.segmenter import UnderfittingConfig
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.segmenter import (
    build_segmenter,
    description_of,
    forward_loss,
    load_segmenter,
    predict_logits,
)
from pmm_ray.nets.segmenter_transform import training_transform

STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CONFIG = SegmenterConfig(
    weights="none", channels=16, dropout=0.0, crop_size=64, resize_base=(128, 64)
)
PLAIN = UnderfittingConfig(kind="none")


def test_losses_of_both_heads_are_those_of_plain_pytorch() -> None:
    torch.manual_seed(0)
    model = build_segmenter(CONFIG, 4, 255, underfitting=PLAIN).train()
    images = torch.randn(2, 3, 64, 64)
    masks = torch.randint(0, 4, (2, 64, 64))
    masks[:, :20] = 255
    losses = forward_loss(model, images, masks)
    features = model.extract_feat(images)  # type: ignore[operator]
    for name, head, weight in (
        ("decode.loss_pus", model.decode_head, 1.0),
        ("aux.loss_pus", model.auxiliary_head, 0.4),
    ):
        logits = F.interpolate(head(features), (64, 64), mode="bilinear")  # type: ignore[operator]
        # ignored pixels are zeros that count in the mean
        want = F.cross_entropy(logits, masks, ignore_index=255, reduction="sum") / masks.numel()
        torch.testing.assert_close(losses[name], weight * want, rtol=1e-4, atol=1e-5)


def test_underfitting_limits_the_loss_once_its_mean_is_below_beta() -> None:
    losses = {}
    for kind in ("none", "clamp"):
        torch.manual_seed(0)
        pus = UnderfittingConfig(kind=kind, beta=100.0, kappa=0.25)
        model = build_segmenter(CONFIG, 4, 255, underfitting=pus).train()
        generator = torch.Generator().manual_seed(1)
        masks = torch.randint(0, 4, (2, 64, 64), generator=generator)
        losses[kind] = forward_loss(model, torch.randn(2, 3, 64, 64, generator=generator), masks)[
            "decode.loss_pus"
        ]
    assert losses["none"] > 0.25
    assert losses["clamp"] <= 0.25


def test_logits_have_the_input_size() -> None:
    model = build_segmenter(CONFIG, 4, 255).eval()
    with torch.no_grad():
        assert predict_logits(model, torch.randn(2, 3, 65, 90)).shape == (2, 4, 65, 90)


def test_a_saved_segmenter_comes_back(tmp_path: Path) -> None:
    model = build_segmenter(CONFIG, 4, 255).eval()
    save_model(str(tmp_path / "m.pt"), "segmenter", model, description_of(model).meta())
    loaded, _ = load_segmenter(str(tmp_path / "m.pt"))
    assert description_of(loaded) == description_of(model)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(predict_logits(model, images), predict_logits(loaded, images))


@pytest.mark.parametrize("shape", [(100, 140), (30, 200), (1, 1)])
def test_augmentation_depends_on_its_seed_only(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = rng.integers(0, 4, shape, dtype=np.uint8)
    transform = training_transform(CONFIG, 255, *STATISTICS)
    first = transform(image, mask, 7)
    transform(image, mask, 8)
    np.random.seed(123)
    again = transform(image, mask, 7)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].shape == (3, 64, 64)
    assert set(first[1].unique().tolist()) <= {0, 1, 2, 3, 255}
    # zeros after normalisation, ignored
    padded = first[1] == 255
    assert torch.all(first[0][:, padded] == 0)


def test_image_and_mask_move_together() -> None:
    config = CONFIG.model_copy(update={"cat_max_ratio": 1.0, "resize_ratio": (1.0, 1.0)})
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :20] = 255
    mask = (image[..., 0] > 0).astype(np.uint8)
    transform = training_transform(config, 255, *STATISTICS)
    for seed in range(6):
        pixels, ids = transform(image, mask, seed)
        brightness = pixels.mean(0)
        assert brightness[ids == 1].mean() > brightness[ids == 0].mean() + 0.5
