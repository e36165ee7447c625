"""CAMs: the worker without Ray, sizes, and the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pmm_ray.config import CamsConfig, RunConfig
from pmm_ray.method.cams import normalize
from pmm_ray.nets.scale_cams import ScaleCams, stored_size, view_sizes
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import index_file, read_all
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.cams import decode_cam
from pmm_ray.stages import make_cams

from ..training import untrained_classifier

MakeContext = Callable[..., RunContext]
CPU = torch.device("cpu")


class Redness(nn.Module):
    """Scores that can be worked out by hand: class i is the mean of colour channel i."""

    input_mean = (0.0, 0.0, 0.0)
    input_std = (1.0, 1.0, 1.0)
    num_foreground = 3
    align_corners = False

    def cam_scores(self, images_B3HW: torch.Tensor, labels_BC: torch.Tensor) -> torch.Tensor:
        self.labels = labels_BC
        return images_B3HW


def cam(image: Any, labels: list[int], **settings: Any) -> np.ndarray[Any, Any]:
    config = CamsConfig(stride=1, **settings)
    return ScaleCams(Redness(), config, CPU)(image, labels)  # type: ignore[arg-type]


def test_one_view_is_the_normalised_score() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[1:3, 2:4, 0] = 255
    image[0, 0, 2] = 255
    maps = cam(image, [1, 3], scales=(1.0,), flip=False)
    assert maps.dtype == np.float16
    assert maps.shape == (2, 4, 6)
    np.testing.assert_allclose(maps[0], image[..., 0] / 255, atol=2e-3)
    np.testing.assert_allclose(maps[1], image[..., 2] / 255, atol=2e-3)


def test_a_gated_network_is_told_the_image_s_classes() -> None:
    network = Redness()
    config = CamsConfig(scales=(1.0,))
    cams = ScaleCams(network, config, CPU)  # type: ignore[arg-type]
    cams(np.zeros((4, 6, 3), np.uint8), [1, 3])
    assert network.labels.tolist() == [[1, 0, 1], [1, 0, 1]]


def test_views_are_turned_back_before_they_are_added() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :2, 0] = 255
    once = cam(image, [1], scales=(1.0,), flip=False)
    both = cam(image, [1], scales=(1.0,), flip=True)
    np.testing.assert_allclose(once, both, atol=2e-3)
    mirrored = cam(np.ascontiguousarray(image[:, ::-1]), [1], scales=(1.0, 2.0), flip=True)
    straight = cam(image, [1], scales=(1.0, 2.0), flip=True)
    np.testing.assert_allclose(mirrored[..., ::-1], straight, atol=2e-3)


@pytest.mark.parametrize("align_corners", [True, False])
def test_maps_are_brought_to_the_views_size_as_the_network_does(align_corners: bool) -> None:
    """Then to the image's without aligned corners, and normalised before they are stored."""

    class Coarse(Redness):
        def cam_scores(self, images_B3HW: torch.Tensor, labels_BC: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(images_B3HW, 8)

    network = Coarse()
    network.align_corners = align_corners
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
    config = CamsConfig(stride=4, scales=(1.0,), flip=False)
    got = ScaleCams(network, config, CPU)(image, [1])  # type: ignore[arg-type]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    coarse = torch.nn.functional.avg_pool2d(pixels, 8)[:, :1]
    full = torch.nn.functional.interpolate(
        coarse, (32, 40), mode="bilinear", align_corners=align_corners
    )
    normal = torch.from_numpy(normalize(full[0].numpy(), "multi_scale"))[None]
    want = torch.nn.functional.interpolate(normal, (8, 10), mode="bilinear")[0]
    np.testing.assert_allclose(got, want.numpy(), atol=1e-3)


def test_a_map_without_any_score_is_zero_not_nan() -> None:
    assert not cam(np.zeros((5, 5, 3), np.uint8), [1, 2], scales=(1.0,)).any()


def test_scores_that_are_not_finite_are_an_error_row() -> None:
    class Broken(Redness):
        def cam_scores(self, images_B3HW: torch.Tensor, labels_BC: torch.Tensor) -> torch.Tensor:
            return images_B3HW / 0.0

    cams = ScaleCams(Broken(), CamsConfig(), CPU)  # type: ignore[arg-type]
    with pytest.raises(RowError) as caught:
        cams(np.zeros((4, 4, 3), np.uint8), [1])
    assert caught.value.kind == "nonfinite"


def test_sizes() -> None:
    assert stored_size(375, 500, 4) == (94, 125)
    assert stored_size(1, 1, 4) == (1, 1)
    assert view_sizes(375, 500, CamsConfig(scales=(0.5, 1.0))) == [(188, 250), (375, 500)]
    # a phone's photograph is shrunk first
    assert view_sizes(3000, 4000, CamsConfig(scales=(1.0,), max_long=1000)) == [(750, 1000)]
    assert view_sizes(1, 1, CamsConfig(scales=(0.5,))) == [(1, 1)]


def test_the_stage_writes_one_row_per_labelled_image(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path
) -> None:
    cams = {"scales": [1.0], "flip": False, "actors": 1, "batch_size": 4, "pass_pixels": 10**6}
    config = RunConfig.model_validate({"cams": cams})
    context = make_context(shapes, config)
    checkpoint = untrained_classifier(tmp_path)
    folder = StageFolder.below(context.run_dir, "make_cams", "12345678")
    summary = make_cams.run(
        config.cams, context, folder, images=index_file(shapes.uri), checkpoint_uri=checkpoint
    )
    assert (summary.images, summary.errors) == (16, 0)
    chunks = list(read_events(context.run_dir, "chunk"))
    assert sum(chunk["views"] for chunk in chunks) == 16
    passes, pixels, room = (sum(c[name] for c in chunks) for name in ("passes", "pixels", "room"))
    [end] = read_events(context.run_dir, "stage_end")
    assert end["views_per_pass"] == pytest.approx(16 / passes, abs=0.01)
    assert end["filled"] == pytest.approx(pixels / room, abs=0.001)
    table = read_all(folder.uri)
    assert table.schema.equals(tables.CAMS)
    manifest = {r["image_id"]: r for r in tables.read_table(shapes.uri).to_pylist()}
    for row in table.to_pylist():
        image = manifest[row["image_id"]]
        assert row["labels"] == image["labels"]
        maps = decode_cam(row)
        assert maps.shape == (len(row["labels"]), *stored_size(image["height"], image["width"], 4))
        assert maps.min() >= 0
        assert maps.max() <= 1
