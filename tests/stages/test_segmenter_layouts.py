"""One output for each class, or for each id of the data set: the same training and scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pmm_ray.labels import LabelSpace
from pmm_ray.method.confusion import confusion_matrix, mean_iou
from pmm_ray.nets.segmenter import build_segmenter, description_of, load_segmenter, predict_logits
from pmm_ray.runtime.core.manifest import Manifest

from ..training import losses, train
from .segmenter_job import job, section, validation


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
        photographs = dataclasses.replace(this.task.photographs, label_space=gaps)
        task = dataclasses.replace(this.task, photographs=photographs)
        this = dataclasses.replace(this, task=task)
        original = task.build  # type: ignore[attr-defined]

        def build(original: Any = original, layout: str = layout) -> Any:
            module = original()
            outputs = description_of(module.network).outputs
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
        assert description_of(network).model["decode_head"]["num_classes"] == (
            4 if layout == "contiguous" else 7
        )
        assert meta["num_classes"] == 4
        share = validation(shapes).measure(network, torch.device("cpu"), 0, 1).confusion
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


def test_targets_are_the_data_sets_ids_only_where_the_layout_says_so(
    shapes: Manifest, masks_uri: str, tmp_path: Path
) -> None:
    gaps = space_with_gaps(shapes)
    seen: dict[str, set[int]] = {}
    for layout in ("contiguous", "dataset"):
        this = job(shapes, masks_uri, tmp_path / layout, section(layout=layout))
        photographs = dataclasses.replace(this.task.photographs, label_space=gaps)
        task = dataclasses.replace(this.task, photographs=photographs)
        task.prepare(tmp_path)
        targets: list[Tensor] = [task.dataset()[0, i][1] for i in range(len(task.dataset()))]
        seen[layout] = set(torch.cat([t.flatten() for t in targets]).unique().tolist())
    assert seen["contiguous"] <= {0, 1, 2, 3, 255}
    assert seen["dataset"] == {{0: 0, 1: 2, 2: 5, 3: 6}.get(v, v) for v in seen["contiguous"]}
