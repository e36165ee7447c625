"""What the loaders of trainings feed: images/s of a core, on photographs of PASCAL VOC 2012.

    python benchmarks/loaders.py PATH/TO/VOCdevkit [--recipe recipes/voc12.yaml] [--batches 8]

For the classifier's and the segmenter's loader, with the sizes of the recipe: images/s by CPU time
in this process, on one thread; the share of it that is decoding; images/s by the clock from one
loader process. Then the smallest resize of any photograph: half of a JPEG's pixels on a side can be
left out while decoding (`PIL.Image.draft`) where it is at most 0.5.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pmm_ray.config import RunConfig, load_recipe
from pmm_ray.runtime.cluster.connect import one_thread
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training import loader
from pmm_ray.runtime.training.sampling import BatchPlan
from pmm_ray.runtime.training.task import TrainingTask
from pmm_ray.sources.datasets.voc12 import import_voc12
from pmm_ray.stages.train_classifier import ClassifierTask
from pmm_ray.stages.train_segmenter import SegmenterTask

BATCH = 8


def tasks(config: RunConfig, manifest: Manifest, place: Path) -> dict[str, TrainingTask[Any]]:
    """The trainings of both networks; the segmenter learns from the truth."""
    rows = []
    for row in tables.read_table(manifest.uri).to_pylist():
        if row["split"] == config.data.train_split and row["ground_truth_uri"]:
            png = storage.read_bytes(manifest.locate(row["ground_truth_uri"]))
            kept = {name: row[name] for name in ("image_id", "height", "width", "labels")}
            rows.append({**kept, "mask_png": png, "foreground": 0.5, "round": 0})
    masks = place / "masks"
    tables.write_rows(str(masks / "part-0.parquet"), rows, tables.MASKS)
    photographs = Photographs(manifest.root, manifest.apply_exif, 10**8, manifest.label_space)
    fields: dict[str, Any] = {"stage": "train", "seed": 0, "split": config.data.train_split}
    fields |= {"manifest_uri": manifest.uri, "photographs": photographs}
    segmenter = SegmenterTask(config=config.segmenter, masks_uri=str(masks), round=0, **fields)
    segmenter.prepare(place)
    return {
        "classifier": ClassifierTask(config=config.classifier, **fields),
        "segmenter": segmenter,
    }


def speeds(task: TrainingTask[Any], steps: int) -> tuple[float, float, float]:
    """(images/s of CPU time, share of decoding, images/s by the clock from one process)."""
    read, decoding = loader.read_image, [0.0]

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.process_time()
        image = read(*arguments, **options)
        decoding[0] += time.process_time() - began
        return image

    data = task.dataset()
    plan = BatchPlan(0, len(data), BATCH, 1)
    loader.read_image = timed  # type: ignore[assignment]
    try:
        given = loader.batches(data, plan, 0, first=0, last=steps + 1)
        next(given)
        decoding[0], began = 0.0, time.process_time()
        for _ in given:
            pass
        seconds = time.process_time() - began
    finally:
        loader.read_image = read
    given = loader.batches(data, plan, 0, first=0, last=steps + 1, processes=1)
    next(given)
    clock = time.monotonic()
    for _ in given:
        pass
    images = steps * BATCH
    return images / seconds, decoding[0] / seconds, images / (time.monotonic() - clock)


def smallest_resize(config: RunConfig, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of any photograph: its sides in the network over its sides in the file."""
    long, short = (config.segmenter.resize_ratio[0] * side for side in config.segmenter.resize_base)
    sides = [sorted((row["height"], row["width"])) for row in rows]
    return {
        "classifier": min(config.classifier.resize_long[0] / high for _, high in sides),
        "segmenter": min(min(long / high, short / low) for low, high in sides),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="of a VOCdevkit")
    parser.add_argument("--recipe", default="recipes/voc12.yaml")
    parser.add_argument("--batches", type=int, default=8, help=f"of {BATCH} images")
    arguments = parser.parse_args()
    one_thread()
    torch.set_num_threads(1)
    config = load_recipe(arguments.recipe)
    with tempfile.TemporaryDirectory(prefix="pmm-loaders-") as place:
        import_voc12(arguments.root, place, labels_from="masks")
        manifest = open_manifest(str(Path(place) / "manifest.parquet"))
        least = smallest_resize(config, tables.read_table(manifest.uri).to_pylist())
        for name, task in tasks(config, manifest, Path(place)).items():
            cpu, share, clock = speeds(task, arguments.batches)
            print(
                f"{name:10}  {cpu:5.1f} images/s of a core, {100 * share:.0f} % of it decoding; "
                f"{clock:5.1f} images/s from a loader process; smallest resize {least[name]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
