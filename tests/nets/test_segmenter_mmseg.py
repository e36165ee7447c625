"""The segmenter and mmsegmentation: registries, heads, silence, and odd inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

from pmm_ray.config import SegmenterConfig, UnderfittingConfig
from pmm_ray.method.underfitting import (
    UnderfittingKind,
    UnderfittingScope,
    pretended_underfitting,
)
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.segmenter import (
    build_segmenter,
    description_of,
    forward_loss,
    load_segmenter,
    predict_logits,
    underfitting_share,
)
from pmm_ray.nets.segmenter_transform import training_transform
from pmm_ray.runtime.core.errors import CannotRunError

STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL: dict[str, Any] = {"weights": "none", "channels": 8, "crop_size": 32}
CONFIG = SegmenterConfig(**SMALL, resize_base=(64, 32), output_stride=16)


def test_backbone_and_loss_are_built_from_mmsegs_registry() -> None:
    backbone = MODELS.build({"type": "PmmEfficientNetLite0", "output_stride": 8})
    shapes = [tuple(t.shape[1:]) for t in backbone.eval()(torch.zeros(1, 3, 33, 64))]
    assert shapes == [(24, 9, 16), (40, 5, 8), (112, 5, 8), (320, 5, 8)]
    assert backbone.channels == [channels for channels, *_ in shapes]
    loss = MODELS.build({"type": "PretendedUnderfittingLoss"})
    assert loss.loss_name.startswith("loss_")


KINDS: tuple[UnderfittingKind, ...] = ("none", "clamp", "pow", "ignore", "reweight")
SCOPES: tuple[UnderfittingScope, ...] = ("group", "worker", "image", "global")


@pytest.mark.parametrize("beta", [10.0, 1.6, 0.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_registered_loss_is_the_pure_function(
    beta: float, kind: UnderfittingKind, scope: UnderfittingScope
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 7, generator=generator)
    labels = torch.randint(0, 4, (2, 5, 7), generator=generator)
    labels[0, :2] = 255
    options: dict[str, Any] = {"kind": kind, "beta": beta, "kappa": 0.7, "scope": scope}
    loss = MODELS.build({"type": "PretendedUnderfittingLoss", **options, "loss_weight": 0.4})
    per_pixel = -F.log_softmax(logits, 1).gather(1, labels.clamp(max=3)[:, None])[:, 0]
    per_pixel = torch.where(labels == 255, 0.0, per_pixel)
    want = 0.4 * pretended_underfitting(per_pixel, labelled=labels != 255, **options)[0]
    torch.testing.assert_close(loss(logits, labels, ignore_index=255), want)


@pytest.mark.parametrize(("beta", "want"), [(0.0, 0.0), (1.75, 0.5), (99.0, 1.0)])
def test_the_share_of_limited_losses_is_the_mean_of_the_heads(beta: float, want: float) -> None:
    """The decode head's loss is 2 ln 4 by its class weights, the auxiliary head's ln 4 (1.39)."""
    pus = UnderfittingConfig(kind="clamp", beta=beta)
    model: Any = build_segmenter(CONFIG, 4, 255, underfitting=pus).train()
    assert underfitting_share(model) is None
    for head in (model.decode_head, model.auxiliary_head):
        torch.nn.init.zeros_(head.conv_seg.weight)
        torch.nn.init.zeros_(head.conv_seg.bias)
    model.decode_head.loss_decode.class_weight = torch.full((4,), 2.0)
    forward_loss(model, torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32).long())
    share = underfitting_share(model)
    assert share is not None
    assert float(share) == want
    plain = build_segmenter(CONFIG, 4, 255, underfitting=UnderfittingConfig(kind="none")).train()
    forward_loss(plain, torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32).long())
    assert underfitting_share(plain) is None


def test_the_loss_serves_mmsegs_samplers_and_class_weights() -> None:
    logits, labels = torch.randn(1, 3, 2, 2), torch.tensor([[[0, 1], [2, 255]]])
    weights = [1.0, 2.0, 0.5]
    loss = MODELS.build(
        {"type": "PretendedUnderfittingLoss", "kind": "none", "class_weight": weights}
    )
    want = F.cross_entropy(
        logits, labels, torch.tensor(weights), reduction="none", ignore_index=255
    )
    torch.testing.assert_close(loss(logits, labels), want.mean())
    torch.testing.assert_close(loss(logits, labels, reduction_override="none"), want)
    chosen = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    torch.testing.assert_close(loss(logits, labels, weight=chosen), (want * chosen).mean())


def test_weight_zero_leaves_the_auxiliary_head_out() -> None:
    model = build_segmenter(CONFIG.model_copy(update={"auxiliary_weight": 0.0}), 4, 255).train()
    losses = forward_loss(model, torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32).long())
    assert not [name for name in losses if name.startswith("aux")]
    assert not [name for name, _ in model.named_parameters() if "auxiliary" in name]


@pytest.mark.parametrize("size", [(1, 1), (17, 31), (33, 64)])
def test_any_size_is_predicted(size: tuple[int, int]) -> None:
    model = build_segmenter(CONFIG, 4, 255).eval()
    with torch.no_grad():
        logits = predict_logits(model, torch.randn(2, 3, *size))
    assert logits.shape == (2, 4, *size)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.pt")
    meta = description_of(build_segmenter(CONFIG, 5, 255)).meta()
    save_model(uri, "segmenter", build_segmenter(CONFIG, 4, 255), meta)
    with pytest.raises(CannotRunError, match=r"of another shape: .*conv_seg"):
        load_segmenter(uri)
    save_model(uri, "classifier", build_segmenter(CONFIG, 4, 255), meta)
    with pytest.raises(CannotRunError, match="holds a classifier"):
        load_segmenter(uri)


@pytest.mark.parametrize(("dtype", "ignore"), [(np.uint8, 255), (np.uint16, 65535)])
def test_the_transform_keeps_wide_ids_and_pads_with_the_ignore_value(
    dtype: type[np.generic], ignore: int
) -> None:
    top = ignore - 1
    mask = np.zeros((20, 24), dtype)
    mask[:10] = top
    image = np.full((20, 24, 3), 255, np.uint8)
    config = CONFIG.model_copy(update={"resize_base": (24, 20), "resize_ratio": (1.0, 1.0)})
    pixels, ids = training_transform(config, ignore, *STATISTICS)(image, mask, 3)
    assert ids.dtype == torch.int64
    assert set(ids.unique().tolist()) == {0, top, ignore}
    assert (ids != ignore).sum() == 20 * 24
    assert torch.all(ids[20:] == ignore)
    assert torch.all(ids[:, 24:] == ignore)
    assert torch.all(pixels[:, ids == ignore] == 0)
    assert torch.all(pixels[:, ids != ignore].mean(0) > 0)


def test_crops_filled_by_one_class_are_redrawn() -> None:
    mask = np.zeros((32, 128), np.uint8)
    mask[:, 96:] = 1
    image = np.zeros((32, 128, 3), np.uint8)
    changes = {"resize_base": (128, 32), "resize_ratio": (1.0, 1.0)}
    shares = {}
    for ratio in (0.75, 1.0):
        config = CONFIG.model_copy(update={**changes, "cat_max_ratio": ratio})
        transform = training_transform(config, 255, *STATISTICS)
        crops = [transform(image, mask, seed)[1] for seed in range(60)]
        shares[ratio] = np.mean([0.25 <= float(c.float().mean()) <= 0.75 for c in crops])
    assert shares[0.75] > shares[1.0] + 0.3


PROGRAM = """
import torch
from pmm_ray.config import SegmenterConfig
from pmm_ray.nets.segmenter import build_segmenter, forward_loss, predict_logits
config = SegmenterConfig(weights="none", channels=8, output_stride=32)
model = build_segmenter(config, 4, 255).train()
forward_loss(model, torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long))
predict_logits(model.eval(), torch.randn(1, 3, 33, 32))
"""


def test_nothing_is_printed() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
