"""What an actor does to an image's class scores before a CRF task gets them: before and after.

    python benchmarks/pack_scores.py

For an image of 640 x 480 and 81 or 21 classes, on one thread:

- `before`: the NumPy of old, below: finite check, copy of the classes, merging, float16, the row.
- `on a CPU`: what actors without a GPU do now.
- `device`: the choice in torch, which a GPU makes; here it runs on the CPU and only stands for it.
- `beside a GPU`: what is left to the actor's CPU then: the planes that stay, as a row.

The row's way into the Arrow stream that leaves the actor is part of each but `device`. Bytes, or
else masks, are compared. CPU seconds, the median of `--repeats`, so work beside it matters little.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from latticecrf.mean_field.merging import mergeable_share
from pmm_ray.config import PredictConfig
from pmm_ray.nets.segmenter_views import checked
from pmm_ray.nets.weak_labels import split_scores
from pmm_ray.runtime.rows.masks import crf_parameters
from pmm_ray.runtime.rows.scores import SCORES, pack_scores, refine_row, scores_row

CONFIG = PredictConfig()


def network_scores(classes: int, height: int, width: int) -> NDArray[np.float32]:
    """Blobs of four classes, and next to nothing of each other, of some more than of others."""
    draw = np.random.default_rng(classes)
    logits = draw.normal(-11, 0.3, (classes, height, width)) - draw.random((classes, 1, 1)) * 4
    coarse = np.abs(draw.normal(0, 3, (4, 6, 8)))
    blobs = coarse.repeat(-(-height // 6), 1).repeat(-(-width // 8), 2)[:, :height, :width]
    logits[[0, 1, classes // 2, classes - 1]] = blobs
    exp = np.exp(logits - logits.max(0))
    return np.asarray(exp / exp.sum(0), np.float32)


def merge_as_before(scores_MHW: NDArray[np.float32]) -> tuple[Any, NDArray[np.float32]]:
    """`merge_weak_labels` of commit 863a836: label by label, over whole planes."""
    parameters = crf_parameters(CONFIG.crf)
    strongest = 2.0 * (parameters.gaussian_weight + parameters.bilateral_weight)
    clipped = np.clip(scores_MHW, np.float32(1e-5), 1.0)
    total_HW = clipped.sum(axis=0)
    largest_M = np.array([float((plane_HW / total_HW).max()) for plane_HW in clipped])
    winners = np.unique(clipped.argmax(axis=0))
    weak_M, rest_HW = np.zeros(len(clipped), np.bool_), np.zeros_like(total_HW)
    for label in np.argsort(largest_M, kind="stable"):
        if label in winners:
            continue
        more_HW = rest_HW + clipped[label]
        share = float((more_HW / total_HW).max())
        first = math.e * share * strongest
        if first > 1 or share * math.expm1(strongest * share * math.exp(first)) > 5e-4:
            break
        weak_M[label], rest_HW = True, more_HW
    if weak_M.sum() < 2:
        return np.arange(len(clipped)), clipped
    kept = np.flatnonzero(~weak_M)
    return kept, np.concatenate([clipped[kept], rest_HW[None]])


def sent(row: dict[str, Any]) -> bytes:
    """The row in an Arrow stream, as `produce_chunk` makes it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCORES) as writer:
        writer.write_table(pa.Table.from_pylist([row], schema=SCORES))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(CPU seconds, result), after one call that is not counted."""
    result, taken = work(), []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        taken.append(time.process_time() - start)
    return statistics.median(taken), result


def measure(classes: int, options: argparse.Namespace) -> dict[str, Any]:
    """CPU milliseconds of each way, and whether they agree."""
    height, width, repeats = options.height, options.width, options.repeats
    scores = network_scores(classes, height, width)
    ids = np.arange(classes)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    share = mergeable_share(crf_parameters(CONFIG.crf))

    def before() -> dict[str, Any]:
        assert np.isfinite(scores).all()
        allowed = np.ascontiguousarray(scores[ids])
        kept, planes = merge_as_before(allowed)
        row = {"image_id": "i", "labels": ids[kept].tolist(), "pixels": image.tobytes()}
        row["scores"] = planes.astype("<f2").tobytes()
        sent(row)
        return row

    def now() -> dict[str, Any]:
        row = pack_scores("i", image, ids, checked(scores), CONFIG)
        sent(row)
        return row

    split = split_scores(torch.tensor(scores), share)

    def beside() -> dict[str, Any]:
        kept, planes = split.fetch()
        row = scores_row("i", image, ids[kept], planes)
        sent(row)
        return row

    on_device = torch.tensor(scores)
    device, _ = seconds(lambda: split_scores(on_device, share), repeats)
    ways = {name: seconds(way, repeats) for name, way in (("before", before), ("on a CPU", now))}
    ways["beside a GPU"] = seconds(beside, repeats)
    rows = {name: row for name, (_, row) in ways.items()}
    same = rows["on a CPU"] == rows["before"]
    masks = [
        refine_row(row, height, width, CONFIG) for row in (rows["before"], rows["beside a GPU"])
    ]
    return {
        "classes": classes,
        "sent": len(rows["before"]["labels"]),
        "megabytes": len(rows["before"]["scores"] + rows["before"]["pixels"]) / 1e6,
        **{f"{name}, ms": 1e3 * taken for name, (taken, _) in ways.items()},
        "device, ms": 1e3 * device,
        "same bytes on a CPU": same,
        "pixels of another class beside a GPU": int((masks[0] != masks[1]).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[81, 21])
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for classes in options.classes:
        print(json.dumps(measure(classes, options), indent=2), flush=True)


if __name__ == "__main__":
    main()
