"""Sanity floor for pseudo-masks: do they beat a centred ellipse filled with the rarest label?

    python benchmarks/experiments/centred_ellipse.py RUN [--least 20]

The baseline needs no network: an ellipse in the middle of the image, in the image's proportions,
filled with the one of its labels that is rarest in the training split. Its area is tuned on the
training split's ground truth. Both sides are scored on the same images of the held-out split, over
the classes that have at least `--least` training images. Prints one line per side, in mIoU %.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pmm_ray.method.confusion import confusion_matrix, iou
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.index import read_index
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.rows.images import decode_mask

AREAS = np.arange(0.05, 0.80, 0.05)


def ellipse(height: int, width: int, area: float) -> NDArray[np.bool_]:
    """[H, W]: inside the centred ellipse that covers this share of the image's rectangle."""
    y = (np.arange(height) + 0.5) / height * 2 - 1
    x = (np.arange(width) + 0.5) / width * 2 - 1
    radius2 = area * 4 / np.pi  # the unit square's inscribed circle covers pi / 4
    return np.asarray(y[:, None] ** 2 + x[None, :] ** 2 <= radius2)


def truths(
    manifest: Manifest, rows: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], NDArray[Any]]]:
    for row in rows:
        yield row, decode_mask(storage.read_bytes(manifest.locate(row["ground_truth_uri"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder with a make_masks stage")
    parser.add_argument("--least", type=int, default=20, help="training images of a scored class")
    arguments = parser.parse_args()

    run = storage.absolute(arguments.run)
    record = json.loads(storage.read_bytes(storage.join(run, "run.json")))
    data = yaml.safe_load(storage.read_bytes(storage.join(run, "resolved.yaml")))["data"]
    [masks_folder] = [s["folder"] for s in record["stages"] if s["stage"] == "make_masks"]
    manifest = open_manifest(record["manifest"])
    space = manifest.label_space
    rows = [r for r in tables.read_table(manifest.uri).to_pylist() if r["ground_truth_uri"]]
    train = [r for r in rows if r["split"] == data["train_split"]]
    held_out = [r for r in rows if r["split"] == data["held_out_split"]]
    counts = Counter(label for row in train for label in row["labels"])
    scored = [c for c in range(1, space.num_classes) if counts[c] >= arguments.least]

    def confusion(pairs: Iterator[tuple[NDArray[Any], NDArray[Any]]]) -> NDArray[np.int64]:
        total = np.zeros((space.num_classes, space.num_classes), np.int64)
        for truth, mask in pairs:
            total += confusion_matrix(truth, mask, space.num_classes, space.ignore)
        return total

    def score(total: NDArray[np.int64]) -> float:
        return 100 * float(np.nanmean(iou(total)[scored]))

    def baseline(images: list[dict[str, Any]], area: float) -> NDArray[np.int64]:
        def pairs() -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
            for row, truth in truths(manifest, images):
                rarest = min(row["labels"], key=lambda label: (counts[label], label))
                mask = np.where(ellipse(*truth.shape, area), rarest, 0).astype(space.mask_dtype)
                yield truth, mask

        return confusion(pairs())

    best = max(AREAS, key=lambda area: score(baseline(train, area)))
    places = read_index(storage.join(run, masks_folder)).locations()

    def ours() -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for row, truth in truths(manifest, held_out):
            # an image without a mask counts as all background
            mask = np.zeros(truth.shape, space.mask_dtype)
            if row["image_id"] in places:
                uri, position = places[row["image_id"]]
                mask = decode_mask(tables.read_rows(uri, [position])[0]["mask_png"])
            yield truth, mask

    floor, reached = score(baseline(held_out, best)), score(confusion(ours()))
    print(
        f"{len(held_out)} images of {data['held_out_split']}, {len(scored)} classes with at least"
    )
    print(f"{arguments.least} training images: {', '.join(space.names[c] for c in scored)}")
    print(f"centred ellipse, area {best:.2f} tuned on {data['train_split']}: {floor:5.1f} mIoU %")
    print(f"pseudo-masks:                                     {reached:5.1f} mIoU %")
    print(f"difference:                                       {reached - floor:+5.1f} points")


if __name__ == "__main__":
    main()
