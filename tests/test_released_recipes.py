"""The `*-released` recipes hold every setting of the public code, as its files and scripts have it.

Source: Eli-YiLi/PMM 134ad33, Eli-YiLi/WSSS_MMSeg 2cbb54e, read setting by setting.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from pmm_ray.config import RunConfig, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
SCALES = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0)
CLASSIFIERS = {
    "kind": "seam",
    "freeze_first": True,
    "freeze_norm": True,
    "momentum": 5e-4,
    "weight_decay": 5e-4,
    "poly_power": 0.9,
    "head_multiplier": 10.0,
    "color_jitter": 0.3,
    "amp": False,
    "clip_norm": None,
    "pcm.gate_labels": False,
    "resnet38_dilation": 2,
}
PLAIN_VIEWS = {"resize_long": (448, 768), "crop_size": 448}
WINDOWS = {
    "crops.geometry": "released",
    "crops.scales": SCALES,
    "crops.size": 448,
    "crops.stride": 300,
}
CRF = {
    "iterations": 10,
    "gaussian_sigma": 3.0,
    "gaussian_weight": 3.0,
    "bilateral_sigma": 80.0,
    "bilateral_color_sigma": 13.0,
    "bilateral_weight": 10.0,
}
COMMON: dict[str, dict[str, Any]] = {
    "classifier": {**CLASSIFIERS, **PLAIN_VIEWS},
    "multicrop": {**CLASSIFIERS, **WINDOWS, "backbone": "scalenet101", "weights": "imagenet"},
    "base": {
        "cams.kind": "multi_scale",
        "cams.scales": (0.5, 1.0, 1.5, 2.0),
        "cams.flip": True,
        "cams.precision": "float32",
        "alpha": 24.0,
        "threshold": 0.9,
        **{f"crf.{name}": value for name, value in CRF.items()},
    },
    "cams": {"kind": "multi_crop", "flip": True, "precision": "float32", **WINDOWS},
    "masks": {
        "method": "ppmg",
        "semantics": "released",
        "alpha": 11.0,
        "smoothing": 0.3,
        "threshold": 0.05,
        **{f"crf.{name}": value for name, value in CRF.items()},
        "crf.gaussian_weight": 10.0,
    },
    "affinity": {
        "enabled": False,
        "backbone": "scalenet101",
        "weights": "imagenet",
        "batch_size": 16,
        "epochs": 8,
        "learning_rate": 0.02,
        "momentum": 5e-4,
        "weight_decay": 5e-4,
        "head_multiplier": 10.0,
        "crop_size": 448,
        "radius": 5,
        "alpha_low": 4.0,
        "alpha_high": 24.0,
        "amp": False,
        "walk.alpha": 6.0,
        "walk.beta": 8.0,
        "walk.log_steps": 6,
        **{f"crf.{name}": value for name, value in CRF.items()},
    },
    "ablate": {"backbones": ("resnet38", "res2net101", "scalenet101")},
    "segmenter": {
        "weights": "imagenet",
        "output_stride": 8,
        "channels": 512,
        "pool_scales": (1, 2, 3, 6),
        "dropout": 0.1,
        "auxiliary_weight": 0.4,
        "freeze_norm": False,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "head_multiplier": 1.0,
        "poly_power": 0.9,
        "resize_ratio": (0.5, 2.0),
        "cat_max_ratio": 0.75,
        "amp": False,
        "choose": "best",
        "validation": "test",
        "validation_images": None,
        "underfitting.kind": "clamp",
        "underfitting.scope": "group",
        "underfitting.group": 2,
    },
    "predict": {
        "ratios": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        "flip": True,
        "resize_base": (2048, 512),
        "mode": "slide",
        "crop_size": 512,
        "stride": 480,
        "use_crf": True,
        "use_image_labels": False,
        "precision": "float32",
        "crf.iterations": 10,
        "crf.gaussian_sigma": 1.0,
        "crf.gaussian_weight": 3.0,
        "crf.bilateral_sigma": 67.0,
        "crf.bilateral_color_sigma": 3.0,
        "crf.bilateral_weight": 4.0,
    },
    "cycles": {"update": "always", "stop_when": None},
}
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "voc12-released": {
        "classifier": {
            "backbone": "resnet38",
            "weights": "seam",
            "learning_rate": 0.02,
            "batch_size": 24,
            "epochs": 8,
        },
        "multicrop": {
            "enabled": True,
            "learning_rate": 0.02,
            "batch_size": 16,
            "epochs": 20,
            "relabel_share": 0.1,
        },
        "segmenter": {
            "iterations": 20_000,
            "batch_size": 16,
            "learning_rate": 0.005,
            "min_learning_rate": 1e-4,
            "resize_base": (2048, 512),
            "crop_size": 512,
            "validate_every": 2000,
            "underfitting.beta": 0.5,
            "underfitting.kappa": 0.5,
        },
        "cycles": {"rounds": 1},
    },
    "coco14-released": {
        "classifier": {
            "backbone": "scalenet101",
            "weights": "imagenet",
            "learning_rate": 0.01,
            "batch_size": 8,
            "epochs": 20,
        },
        "multicrop": {"enabled": False},
        "segmenter": {
            "backbone": "scalenet101",
            "layout": "dataset",
            "iterations": 40_000,
            "batch_size": 32,
            "learning_rate": 0.01,
            "min_learning_rate": 5e-5,
            "resize_base": (2048, 448),
            "crop_size": 448,
            "validate_every": 4000,
            "underfitting.beta": 0.8,
            "underfitting.kappa": 0.8,
        },
        "cycles": {"rounds": 0},
    },
}


def value_of(config: RunConfig, section: str, key: str) -> Any:
    return reduce(getattr, [section, *key.split(".")], config)


@pytest.mark.parametrize("recipe", OWN)
def test_every_setting_is_that_of_the_released_code(recipe: str) -> None:
    config = load_recipe(RECIPES / f"{recipe}.yaml")
    wrong = {}
    for table in (COMMON, OWN[recipe]):
        for section, settings in table.items():
            for key, want in settings.items():
                found = value_of(config, section, key)
                if found != want:
                    wrong[f"{section}.{key}"] = (found, want)
    assert wrong == {}
