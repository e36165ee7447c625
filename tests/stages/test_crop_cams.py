"""Multi-crop CAMs: the same maps as window after window, whatever shares a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from pmm_ray.config import CamsConfig, RunConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.method.multicrop import Geometry, windows
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.crop_cams import CropCams, Photograph
from pmm_ray.nets.registry import build_classifier
from pmm_ray.nets.scale_cams import ScaleCams
from pmm_ray.nets.views import cut_windows, resize_views
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import ErrorRow, RowError
from pmm_ray.runtime.core.index import index_file, read_all
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.cams import decode_cam
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages import make_cams
from pmm_ray.stages.make_cams import crop_worker, scale_worker

from ..networks import Colours

MakeContext = Callable[..., RunContext]
CPU = torch.device("cpu")
CROPS = {"scales": [0.5, 1.0, 1.75], "size": 64, "stride": 44}


def cams_config(geometry: str = "paper", **values: Any) -> CamsConfig:
    crops = {**CROPS, "geometry": geometry}
    return CamsConfig.model_validate({"kind": "multi_crop", "crops": crops, **values})


class Small(CamNetwork):
    """Two convolutions, at an eighth of the image's size; maps of four classes."""

    def __init__(self, align_corners: bool) -> None:
        torch.nn.Module.__init__(self)
        torch.manual_seed(3)
        self.align_corners = align_corners
        self.num_foreground = 4
        self.input_mean, self.input_std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 9, 4, 4), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, 2, 1)
        )

    def cam_scores(self, images_B3HW: Any, labels_BC: Any = None) -> torch.Tensor:
        found: torch.Tensor = self.layers(images_B3HW)
        return found


@pytest.fixture(scope="module", params=[True, False])
def model(request: pytest.FixtureRequest) -> CamNetwork:
    return Small(request.param)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def photographs() -> list[Photograph]:
    made = []
    for key, (height, width, labels) in enumerate(
        [(75, 100, [2, 4]), (60, 41, [1]), (40, 90, [3])]
    ):
        made.append(Photograph(key, picture(height, width, key), labels, (height, width)))
    return made


def resized(image_HW3: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    tensor = torch.from_numpy(image_HW3).permute(2, 0, 1)[None]
    return resize_views(tensor, height, width)[0].permute(1, 2, 0).numpy()


@torch.no_grad()
def window_after_window(
    photograph: Photograph, model: CamNetwork, config: CamsConfig
) -> NDArray[np.float32]:
    """The released code's loop: one window and its mirror image at a time."""
    image_HW3 = photograph.pixels_hw3
    height, width = image_HW3.shape[:2]
    crops, side = config.crops, config.crops.size
    total = np.zeros((len(photograph.labels), height, width))
    count = np.zeros((height, width))
    for of_scale in windows(
        height, width, crops.scales, geometry=crops.geometry, size=side, stride=crops.stride
    ):
        for window in of_scale:
            place = window.original
            top = left = 0
            view = np.zeros((side, side, 3), np.float32)
            mean, std = np.array(model.input_mean), np.array(model.input_std)
            if crops.geometry == "released":
                cut = resized(image_HW3[place.slices], side, side)
            else:
                scaled = resized(image_HW3, window.scaled_height, window.scaled_width)
                cut = scaled[window.scaled.slices]
                top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
            rows, columns = slice(top, top + cut.shape[0]), slice(left, left + cut.shape[1])
            view[rows, columns] = (cut / 255.0 - mean) / std
            for mirrored in (False, True):
                seen = view[:, ::-1] if mirrored else view
                batch = torch.from_numpy(seen.transpose(2, 0, 1)[None].copy())
                maps = model.cam_scores(batch)[:, [label - 1 for label in photograph.labels]]
                corners = {"align_corners": model.align_corners}
                maps = functional.interpolate(maps, (side, side), mode="bilinear", **corners)
                maps = (maps.flip(-1) if mirrored else maps)[:, :, rows, columns]
                maps = functional.interpolate(
                    maps, (place.height, place.width), mode="bilinear", align_corners=False
                )
                total[:, place.slices[0], place.slices[1]] += maps[0].numpy()
                count[place.slices] += 1
    average = total / np.maximum(count, 1)
    return np.asarray(average, np.float32)


def normalised(average: NDArray[np.float32]) -> NDArray[np.float32]:
    low = average.min(axis=(1, 2), keepdims=True)
    high = average.max(axis=(1, 2), keepdims=True)
    normal = np.clip((average - low) / (high - low + 1e-5), 0, 1)
    return np.asarray(np.where(average < low + 1e-5, 0, normal), np.float32)


@pytest.mark.parametrize("geometry", ["paper", "released"])
def test_batches_give_what_windows_give_one_after_the_other(
    model: CamNetwork, geometry: str
) -> None:
    config = cams_config(geometry, stride=1)
    expected = [window_after_window(one, model, config) for one in photographs()]
    for views in (1, 7, 500):  # 500: all windows of all photographs in one pass
        cams = CropCams(model, config.model_copy(update={"pass_pixels": views * 64**2}), CPU)
        for (photograph, maps), want in zip(cams.merged(photographs()), expected, strict=True):
            assert maps.dtype == torch.float32
            np.testing.assert_allclose(maps, want, rtol=0, atol=1e-5)
            assert photograph.key in (0, 1, 2)
    for (key, cam), want in zip(cams(photographs()), expected, strict=True):
        assert cam.dtype == np.float16
        np.testing.assert_allclose(cam, normalised(want), rtol=0, atol=1e-3)
        assert key in (0, 1, 2)


def test_what_shares_a_batch_changes_nothing(model: CamNetwork) -> None:
    together = CropCams(model, cams_config(pass_pixels=5 * 64**2), CPU).merged(photographs())
    for photograph, maps in together:
        alone = CropCams(model, cams_config(), CPU).merged([photograph])
        torch.testing.assert_close(maps, next(alone)[1], rtol=0, atol=1e-5)


def test_memory_holds_one_batch_of_views_and_its_photographs(model: CamNetwork) -> None:
    """Photographs are taken when the batch needs them, not before."""
    taken: list[int] = []

    def one_by_one() -> Any:
        for photograph in photographs():
            taken.append(photograph.key)
            yield photograph

    cams = CropCams(model, cams_config(pass_pixels=2 * 64**2), CPU)(one_by_one())
    assert next(cams)[0] == 0
    assert taken == [0] or taken == [0, 1]


def test_storage_size_is_kept_of_shrunk_photographs(model: CamNetwork) -> None:
    small = Photograph(0, picture(30, 50), [1, 2], (100, 167))
    ((_, cam),) = CropCams(model, cams_config(), CPU)([small])
    assert cam.shape == (2, 100, 167)


class NoWhite(Colours):
    """It fails where a pixel is white."""

    def cam_scores(self, images_B3HW: Any, labels_BC: Any = None) -> torch.Tensor:
        if (images_B3HW > 0.99).all(dim=1).any():
            raise RuntimeError("white is too much")
        return super().cam_scores(images_B3HW)


@pytest.mark.parametrize("geometry", ["paper", "released"])
def test_maps_lie_where_the_windows_were(geometry: str) -> None:
    image = np.zeros((90, 120, 3), np.uint8)
    image[20:50, 70:110, 1] = 250
    ((_, cam),) = CropCams(NoWhite(), cams_config(geometry), CPU)(
        [Photograph(0, image, [2], (90, 120))]
    )
    inside = cam[0] > 0.5
    truth = image[..., 1] > 0
    assert (inside & truth).sum() / (inside | truth).sum() > 0.9


@pytest.mark.parametrize("kind", ["multi_crop", "multi_scale"])
def test_an_image_that_fails_is_an_error_row_of_its_own(kind: str) -> None:
    space = LabelSpace("abc", ("background", "a", "b", "c"), (0, 1, 2, 3))
    rows = [
        {
            "manifest": {
                "image_id": f"i{n}",
                "uri": f"i{n}.png",
                "labels": [1],
                "height": 50,
                "width": 60,
            }
        }
        for n in range(4)
    ]

    class InMemory(Photographs):
        def image(self, row: Any) -> NDArray[np.uint8]:
            if row["image_id"] == "i1":
                raise RowError("decode", "broken", row["uri"])
            shade = 255 if row["image_id"] == "i2" else 100
            return np.full((50, 60, 3), shade, np.uint8)

    config = cams_config(pass_pixels=16 * 64**2)
    source = InMemory("", False, 10**6, space)
    worker = (
        crop_worker(CropCams(NoWhite(), config, CPU), source, "make_base_cams")
        if kind == "multi_crop"
        else scale_worker(ScaleCams(NoWhite(), config, CPU), source, "make_base_cams")
    )
    results = list(worker(rows))
    failed = [r for r in results if isinstance(r, ErrorRow)]
    assert {r.stage for r in failed} == {"make_base_cams"}
    assert {r.image_id: (r.kind, r.message) for r in failed} == {
        "i1": ("decode", "broken"),
        "i2": ("internal", "RuntimeError: white is too much"),
    }
    assert sorted(r["image_id"] for r in results if isinstance(r, dict)) == ["i0", "i3"]


@pytest.mark.parametrize("geometry", ["paper", "released"])
def test_pieces_are_those_of_pil(geometry: Geometry) -> None:
    pixels = picture(75, 100)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    for of_scale in windows(75, 100, [0.5, 1.75], geometry=geometry, size=64, stride=44):
        pieces = cut_windows(tensor, of_scale, geometry, 64)
        for window, piece in zip(of_scale, pieces, strict=True):
            place, inner = window.original, window.scaled
            if geometry == "released":
                box = place.left, place.top, place.right, place.bottom
                image = Image.fromarray(pixels).crop(box)
                image = image.resize((64, 64), Image.Resampling.BILINEAR)
            else:
                size = window.scaled_width, window.scaled_height
                image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
                image = image.crop((inner.left, inner.top, inner.right, inner.bottom))
            difference = piece[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(image)
            assert np.abs(difference).max() <= 1


def test_the_stage_reads_ahead_and_keeps_errors(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path
) -> None:
    crops = {"scales": [1.0], "size": 48, "stride": 40}
    config = RunConfig.model_validate(
        {
            "cams": {"kind": "multi_crop", "crops": crops, "flip": False, "batch_size": 5}
            | {"actors": 1},
            "classifier": {"kind": "seam", "output_stride": 32},
        }
    )
    context = make_context(shapes, config)
    checkpoint = str(tmp_path / "model.pt")
    meta = {"config": config.classifier.model_dump(mode="json"), "num_foreground": 3}
    net = build_classifier(config.classifier, 3)
    save_model(checkpoint, "classifier", net, meta | {"label_space": "", "training": {}})
    folder = StageFolder.below(context.run_dir, "make_cams", "12345678")
    summary = make_cams.run(
        config.cams, context, folder, images=index_file(shapes.uri), checkpoint_uri=checkpoint
    )
    assert (summary.images, summary.errors) == (16, 0)
    rows = {row["image_id"]: row for row in read_all(folder.uri).to_pylist()}
    source, cams = Photographs.of(context), CropCams(net.eval(), config.cams, CPU)
    for manifest in tables.read_table(shapes.uri).to_pylist()[:3]:
        row = rows[manifest["image_id"]]
        pixels, size = source.image(manifest), (row["cam_height"], row["cam_width"])
        assert size == (-(-manifest["height"] // 4), -(-manifest["width"] // 4))
        ((_, want),) = cams([Photograph(0, pixels, manifest["labels"], size)])
        np.testing.assert_allclose(
            decode_cam(row).astype(np.float32), want.astype(np.float32), atol=2e-3
        )
