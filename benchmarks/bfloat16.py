"""What bfloat16 changes: the CAMs of a finished run's classifier in float32 and in bfloat16.

    python benchmarks/bfloat16.py RUN [--images 20] [--device cpu]

Takes held-out photographs of a run whose CAMs are `multi_scale`, by its first classifier. Prints
how far the maps are apart, how many pixels of the argmax mask (background exponent `--alpha`) have
another class, and the mIoU of both masks on the same photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from pmm_ray.config import RunConfig, load_recipe
from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.confusion import confusion_matrix, mean_iou
from pmm_ray.method.masks import background_score
from pmm_ray.nets.inference import for_inference
from pmm_ray.nets.registry import load_classifier
from pmm_ray.nets.scale_cams import ScaleCams
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.sampling import validation_rows

PRECISIONS = ("float32", "bfloat16")


def only(run: Path, pattern: str) -> str:
    """The one file of a run that a pattern finds."""
    (found,) = run.glob(pattern)
    return str(found)


def main() -> None:
    """Make both maps of each photograph and compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--alpha", type=float, default=3.0, help="of the background's score")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    config: RunConfig = load_recipe(arguments.run / "resolved.yaml")
    manifest = open_manifest(only(arguments.run, "import_data-*/manifest.parquet"))
    space = manifest.label_space
    photographs = Photographs(manifest.root, manifest.apply_exif, 10**8, space)
    model = only(arguments.run, "train_classifier-*/model.pt")
    networks, configs = {}, {}
    for precision in PRECISIONS:
        configs[precision] = config.cams.model_copy(update={"precision": precision})
        network, _ = load_classifier(model)
        networks[precision] = for_inference(network, "cam_scores", configs[precision], device)
    split, count = config.data.held_out_split, arguments.images
    rows = validation_rows(manifest.uri, split, "ground_truth_uri", count, config.seed)
    apart: list[float] = []
    changed = pixels = 0
    confusion = {p: np.zeros((space.num_classes,) * 2, np.int64) for p in PRECISIONS}
    for row in rows:
        image, truth = photographs.image(row), photographs.truth(row)
        labels = photographs.labels(row)
        ids, maps, masks = np.array([0, *labels]), [], []
        for precision in PRECISIONS:
            cams = ScaleCams(networks[precision], configs[precision], device)
            cam = cams(image, labels).astype(np.float32)
            full = upsample_cam(cam, *image.shape[:2])
            scores = np.concatenate([background_score(full, arguments.alpha)[None], full])
            mask = ids[scores.argmax(0)]
            confusion[precision] += confusion_matrix(truth, mask, space.num_classes, space.ignore)
            maps.append(cam)
            masks.append(mask)
        apart.append(float(np.abs(maps[0] - maps[1]).mean()))
        changed += int((masks[0] != masks[1]).sum())
        pixels += masks[0].size
    print(f"{len(rows)} photographs of {split} on {device}: maps are {np.mean(apart):.4f} apart")
    print(f"(mean; the worst photograph {max(apart):.4f}; 0..1); of the masks' pixels", end=" ")
    print(f"{100 * changed / pixels:.2f} % change")
    for precision in PRECISIONS:
        print(f"{precision:9} CAM mIoU {100 * mean_iou(confusion[precision])[0]:.2f} %")


if __name__ == "__main__":
    main()
