"""A trained segmenter's softmax scores of the CRF benchmark's photographs.

    python benchmarks/segmenter_scores.py OUT --recipe recipes/voc12-mini.yaml \\
        --set data.root=PATH/TO/VOCdevkit --manifest RUN/import_data-HASH/manifest.parquet \\
        --model RUN/train_segmenter-r1-HASH/model.pt
    python benchmarks/crf.py joint --joint-count 12 --scores OUT

OUT/ID.npy is float16 [M, H, W], the mean over the recipe's scales: what `predict_masks` gives to
its CRF, before any class is left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import crf_inputs as inputs
import numpy as np

from pmm_ray.config import load_recipe
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages.predict_masks import Scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", type=Path, required=True, help="its predict section")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE")
    parser.add_argument("--manifest", required=True, help="the images' manifest.parquet")
    parser.add_argument("--model", required=True, help="a trained segmenter's model.pt")
    parser.add_argument("--count", type=int, default=12, help="images, evenly spaced")
    inputs.add_folders(parser)
    options = parser.parse_args()
    names = [one.name for one in inputs.load(options.images, options.cams, options.count)]
    rows = {row["image_id"]: row for row in tables.read_table(options.manifest).to_pylist()}
    if missing := [name for name in names if name not in rows]:
        sys.exit(f"{options.manifest} has no image {missing[0]!r} of the CRF benchmark")
    manifest = open_manifest(options.manifest)
    photographs = Photographs(manifest.root, manifest.apply_exif, 100_000_000, manifest.label_space)
    predict = load_recipe(options.recipe, options.set or ()).predict
    scorer = Scorer(options.model, predict, photographs, use_gpu=False)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        _, _, scores_MHW = scorer(rows[name])
        np.save(options.out / f"{name}.npy", scores_MHW.astype(np.float16))
    print(f"{options.out}: {len(names)} images of {len(scores_MHW)} classes")


if __name__ == "__main__":
    main()
