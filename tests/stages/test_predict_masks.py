"""Masks from a segmenter: views, mean, CRF, labels; and `pmm predict` on a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pmm_ray.config import PredictConfig, RunConfig
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.segmenter import build_segmenter
from pmm_ray.predict import find_segmenter, predict_folder
from pmm_ray.runtime import tables
from pmm_ray.runtime.cluster import ClusterResources
from pmm_ray.runtime.errors import CannotRunError, RowError
from pmm_ray.runtime.images import decode_mask
from pmm_ray.runtime.index import index_file, read_all
from pmm_ray.runtime.stage import RunContext, StageFolder
from pmm_ray.sources.manifest import Manifest
from pmm_ray.stages import predict_masks
from pmm_ray.stages.predict_masks import mean_probabilities, view_size

MakeContext = Callable[..., RunContext]
SMALL = {
    "segmenter": {"channels": 8, "weights": "none", "output_stride": 32},
    "predict": {"ratios": [1.0], "resize_base": [64, 64], "crf": {"iterations": 1}},
}


class Threshold(nn.Module):
    """Class 1 where an image is bright, as an mmseg model would say it: logits of the input."""

    def forward(self, inputs: torch.Tensor, mode: str = "tensor") -> torch.Tensor:
        bright = inputs.mean(1, keepdim=True)
        return torch.cat([-bright, bright], 1)


@pytest.fixture
def checkpoint(tmp_path: Path, shapes: Manifest) -> str:
    config = RunConfig.model_validate(SMALL).segmenter
    torch.manual_seed(0)
    model = build_segmenter(config, 4, 255)
    meta = {"config": config.model_dump(mode="json"), "num_classes": 4, "ignore_index": 255}
    meta |= {"label_space": shapes.label_space.to_json(), "round": 0, "training": {}}
    uri = str(tmp_path / "model.pt")
    save_model(uri, "segmenter", model, meta)
    return uri


def test_views_fit_the_base_in_both_directions() -> None:
    assert view_size(375, 500, (2048, 512), 1.0) == (512, 683)
    assert view_size(500, 375, (2048, 512), 0.5) == (341, 256)
    # a very long image is bound by the long side
    assert view_size(100, 1000, (2048, 512), 1.0) == (205, 2048)
    assert view_size(1, 1, (64, 32), 0.01) == (1, 1)


def test_probabilities_are_a_mean_over_views_that_were_turned_back() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 20:] = 255
    config = PredictConfig(ratios=(0.5, 1.0), resize_base=(60, 40))
    mean = mean_probabilities(image, Threshold(), config, torch.device("cpu"))
    assert mean.shape == (2, 20, 30)
    np.testing.assert_allclose(mean.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(mean[:, :, :18].argmax(0), 0)
    np.testing.assert_array_equal(mean[:, :, 22:].argmax(0), 1)


def test_an_output_that_is_not_finite_is_an_error_row() -> None:
    class Broken(Threshold):
        def forward(self, inputs: torch.Tensor, mode: str = "tensor") -> torch.Tensor:
            return super().forward(inputs, mode) * float("nan")

    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(RowError) as caught:
        mean_probabilities(image, Broken(), PredictConfig(), torch.device("cpu"))
    assert caught.value.kind == "nonfinite"


def test_image_labels_restrict_the_classes(
    make_context: MakeContext, shapes: Manifest, checkpoint: str
) -> None:
    settings = SMALL["predict"] | {"use_image_labels": True, "actors": 1}
    config = RunConfig.model_validate(SMALL | {"predict": settings})
    context = make_context(shapes, config)
    folder = StageFolder.below(context.run_dir, "predict_masks-r1", "12345678")
    summary = predict_masks.run(
        config.predict,
        context,
        folder,
        images=index_file(shapes.uri),
        checkpoint_uri=checkpoint,
        round_number=1,
    )
    assert (summary.images, summary.errors) == (16, 0)
    table = read_all(folder.uri)
    assert table.schema.equals(tables.MASKS)
    manifest = {r["image_id"]: r for r in tables.read_table(shapes.uri).to_pylist()}
    for row in table.to_pylist():
        image = manifest[row["image_id"]]
        assert set(row["labels"]) <= set(image["labels"])
        assert row["round"] == 1
        assert decode_mask(row["mask_png"]).shape == (image["height"], image["width"])


def test_predict_writes_a_png_for_each_photograph_and_a_row_for_what_it_cannot_read(
    ray_session: ClusterResources,
    shapes: Manifest,
    checkpoint: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    sources = sorted((Path(shapes.root) / "images").iterdir())[:3]
    for number, source in enumerate(sources):
        (photos / f"{number}{source.suffix}").write_bytes(source.read_bytes())
    (photos / "cut.jpg").write_bytes(sources[0].read_bytes()[:-400])
    out = tmp_path / "out"
    settings = ["predict.ratios=[1.0]", "predict.resize_base=[64, 64]", "predict.actors=1"]
    assert predict_folder(checkpoint, photos, out, settings=settings) == 0
    assert sorted(p.name for p in (out / "masks").iterdir()) == ["0.png", "1.png", "2.png"]
    [errors] = out.glob("predict_masks-*/errors")
    [row] = tables.read_errors(str(errors))
    assert (row.image_id, row.kind) == ("cut", "decode")
    written = {p.name: p.stat().st_mtime_ns for p in (out / "masks").iterdir()}
    # again: nothing is computed
    assert predict_folder(checkpoint, photos, out, settings=settings) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (out / "masks").iterdir()} == written


def test_what_is_no_segmenter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="neither a run folder nor"):
        find_segmenter(str(tmp_path), ())
    (tmp_path / "run.json").write_text('{"stages": [{"stage": "make_cams", "folder": "x"}]}')
    with pytest.raises(CannotRunError, match="no trained segmenter yet"):
        find_segmenter(str(tmp_path), ())
