"""Every preset beside pydensecrf, called as the program of its name calls it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latticecrf import Preset

densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
from pydensecrf.utils import unary_from_labels, unary_from_softmax  # noqa: E402

KEYS = 3
MEAN_BGR = (104.008, 116.669, 122.675)
# (Gaussian sigma and weight, bilateral sigma, colour sigma and weight), from each program
NUMBERS: dict[str, tuple[float, ...]] = {
    "SEAM": (3, 3, 80, 13, 10),
    "IRN": (3, 3, 50, 5, 10),
    "DEEPLAB": (1, 3, 67, 3, 4),
    "CLIP_ES": (1, 3, 67, 3, 4),
    "EXCEL": (1, 3, 67, 3, 4),
    "MORE": (1, 3, 67, 3, 4),
    "TOCO": (1, 1, 121, 5, 4),
    "TOCO_CAM": (3, 3, 36, 3, 4),
    "WECLIP": (3, 3, 64, 5, 4),
    "MCTFORMER": (4, 3, 83, 5, 3),
    "WEAKTR": (3, 3, 83, 5, 3),
    "COSA": (1, 1, 121, 5, 4),
}
ITERATIONS = dict.fromkeys(NUMBERS, 10) | {"COSA": 1}


@pytest.fixture(scope="module")
def photograph() -> Any:
    """Coloured regions with noise, RGB."""
    rng = np.random.default_rng(0)
    regions = rng.integers(0, 256, (4, 5, 3)).repeat(14, 0).repeat(13, 1)
    return np.clip(regions + rng.normal(0, 6, regions.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def maps(photograph: Any) -> Any:
    """Activation maps, float32 [K, H, W], that reach from 0 to 1."""
    height, width = photograph.shape[:2]
    coarse = np.random.default_rng(1).random((KEYS, 4, 5), np.float32)
    planes = coarse.repeat(14, 1).repeat(13, 2)
    planes += np.random.default_rng(2).random((KEYS, height, width), np.float32) / 4
    low, high = planes.min((1, 2), keepdims=True), planes.max((1, 2), keepdims=True)
    return (planes - low) / (high - low)


def reference(name: str, unary: Any, image: Any) -> Any:
    """Posteriors of pydensecrf with a program's numbers."""
    height, width = image.shape[:2]
    sxy, compat, bilateral, srgb, bilateral_compat = NUMBERS[name]
    crf = densecrf.DenseCRF2D(width, height, len(unary))
    crf.setUnaryEnergy(np.ascontiguousarray(unary))
    crf.addPairwiseGaussian(sxy=sxy, compat=compat)
    image = np.ascontiguousarray(image)
    crf.addPairwiseBilateral(sxy=bilateral, srgb=srgb, rgbim=image, compat=bilateral_compat)
    return np.array(crf.inference(ITERATIONS[name])).reshape(-1, height, width)


def softmax(scores: Any) -> Any:
    grown = np.exp(scores - scores.max(axis=0))
    return grown / grown.sum(axis=0)


def without_mean(photograph: Any) -> Any:
    """The image as OpenCV reads it, less Caffe's mean, cast as the programs cast it."""
    image = photograph[..., ::-1].astype(np.float32)
    image -= MEAN_BGR
    return image.astype(np.int64).astype(np.uint8)


def assert_labels(mine: Any, truth: Any) -> None:
    """Equal but for ties, which a test image of this size has next to none of."""
    assert (mine != truth).mean() < 2e-3
    assert set(np.unique(truth)) == set(np.unique(mine))


def test_every_preset_has_its_numbers_and_a_source() -> None:
    assert {preset.name for preset in Preset} == set(NUMBERS)
    for preset in Preset:
        parameters = preset.value.parameters
        found = (
            *(parameters.gaussian_sigma, parameters.gaussian_weight, parameters.bilateral_sigma),
            *(parameters.bilateral_color_sigma, parameters.bilateral_weight),
        )
        assert found == NUMBERS[preset.name]
        assert parameters.iterations == ITERATIONS[preset.name]
        assert preset.value.source
    # PSA's exponents are 4 and 32
    assert "PSA" not in Preset.SEAM.value.source


@pytest.mark.parametrize("name", ["EXCEL", "TOCO", "WECLIP", "MCTFORMER", "WEAKTR", "COSA"])
def test_scores_with_a_background(name: str, photograph: Any, maps: Any) -> None:
    scores = softmax(np.concatenate([np.full_like(maps[:1], 0.4), maps]) * 8)
    truth = reference(name, unary_from_softmax(scores), photograph)
    np.testing.assert_allclose(Preset[name].posteriors(photograph, scores), truth, atol=1e-4)
    assert_labels(Preset[name].labels(photograph, scores), truth.argmax(0))


def test_deeplab(photograph: Any, maps: Any) -> None:
    scores = softmax(np.concatenate([np.full_like(maps[:1], 0.4), maps]) * 8)
    truth = reference("DEEPLAB", unary_from_softmax(scores), without_mean(photograph))
    np.testing.assert_allclose(Preset.DEEPLAB.posteriors(photograph, scores), truth, atol=1e-4)


def test_clip_es(photograph: Any, maps: Any) -> None:
    background = np.power(1 - np.max(maps, axis=0, keepdims=True), 1)
    unary = unary_from_softmax(np.concatenate([background, maps]))
    posterior = reference("CLIP_ES", unary, without_mean(photograph))
    truth = posterior.argmax(axis=0)
    truth[posterior.max(axis=0) < 0.95] = 255
    assert_labels(Preset.CLIP_ES.labels(photograph, maps), truth)


def test_more(photograph: Any, maps: Any) -> None:
    background = np.power(1 - np.max(maps, axis=0, keepdims=True), 1)
    unary = unary_from_softmax(np.concatenate([background, maps]))
    assert_labels(
        Preset.MORE.labels(photograph, maps), reference("MORE", unary, photograph).argmax(0)
    )


def test_seam(photograph: Any, maps: Any) -> None:
    found = []
    for alpha in (4, 24):
        background = np.power(1 - np.max(maps, axis=0, keepdims=True), alpha)
        unary = unary_from_softmax(np.concatenate([background, maps]))
        found.append(reference("SEAM", unary, photograph).argmax(axis=0))
    truth = np.where(found[0] == 0, 255, found[0])
    truth[(found[0] == 0) & (found[1] == 0)] = 0
    assert_labels(Preset.SEAM.labels(photograph, maps), truth)


def test_irn(photograph: Any, maps: Any) -> None:
    found = []
    for threshold in (0.30, 0.05):
        padded = np.pad(maps, ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=threshold)
        unary = unary_from_labels(padded.argmax(axis=0), KEYS + 1, gt_prob=0.7, zero_unsure=False)
        found.append(reference("IRN", unary, photograph).argmax(axis=0))
    truth = found[0].copy()
    truth[found[0] == 0] = 255
    truth[found[0] + found[1] == 0] = 0
    assert_labels(Preset.IRN.labels(photograph, maps), truth)


def test_toco_on_maps(photograph: Any, maps: Any) -> None:
    found = []
    for threshold in (0.7, 0.25):
        logits = np.concatenate([np.full_like(maps[:1], threshold), maps])
        unary = unary_from_softmax(softmax(logits))
        found.append(reference("TOCO_CAM", unary, photograph).argmax(axis=0))
    truth = found[0].copy()
    truth[found[0] == 0] = 255
    truth[found[0] + found[1] == 0] = 0
    assert_labels(Preset.TOCO_CAM.labels(photograph, maps), truth)


@pytest.mark.parametrize("name", ["SEAM", "IRN", "CLIP_ES", "MORE", "TOCO_CAM"])
def test_an_image_without_classes_is_background(name: str, photograph: Any, maps: Any) -> None:
    assert not Preset[name].labels(photograph, maps[:0]).any()


def test_callers_mistakes(photograph: Any, maps: Any) -> None:
    with pytest.raises(ValueError, match="axis H"):
        Preset.IRN.labels(photograph, maps[:, 1:])
    with pytest.raises(ValueError, match="uint8"):
        Preset.IRN.labels(photograph.astype(np.uint16), maps)
    with pytest.raises(ValueError, match="planes has no plane"):
        Preset.EXCEL.labels(photograph, maps[:0])


@pytest.mark.parametrize("scale", [255, -5])
@pytest.mark.parametrize("preset", [Preset.SEAM, Preset.IRN, Preset.EXCEL])
def test_maps_and_scores_of_another_range_are_refused(
    preset: Preset, scale: int, photograph: Any, maps: Any
) -> None:
    with pytest.raises(ValueError, match=r"planes reaches from .* divide each map by its maximum"):
        preset.labels(photograph, maps * scale)
    with pytest.raises(ValueError, match=r"scores_MHW reaches from .* take the softmax"):
        preset.posteriors(photograph, maps * scale)


def test_maps_that_a_program_writes_just_beyond_are_taken(photograph: Any, maps: Any) -> None:
    slightly = maps * np.float32(1.0005)
    slightly[0] = -1
    assert Preset.SEAM.labels(photograph, slightly).shape == photograph.shape[:2]


@pytest.mark.parametrize(("preset", "most"), [(Preset.SEAM, 254), (Preset.EXCEL, 255)])
def test_no_label_has_the_number_that_means_ignored(preset: Preset, most: int) -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    maps_KHW = np.zeros((most + 1, 2, 2), np.float32)
    maps_KHW[-2:] = [[[0.9]], [[0.0]]]
    assert (preset.labels(image, maps_KHW[:most]) == 254).all()
    with pytest.raises(ValueError, match="256 labels compete in one image: at most 255 can"):
        preset.labels(image, maps_KHW)
