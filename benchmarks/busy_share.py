"""How busy the network of an actor is, where storage answers slowly.

    python benchmarks/busy_share.py cams crops relabel
    python benchmarks/busy_share.py cams relabel --pass-pixels 200000
    PYTHONPATH=OLDER_TREE python benchmarks/busy_share.py cams crops relabel

One actor's chunks, as Ray would call them, in threads of this process: its rows are read, mapped
and committed with the lease's check, as in a run. The network only waits, 20 ms a batch; every
access to storage takes 30 ms more. An image is 4 batches of `cams`, about 10 of `crops`, 6 of
`relabel`, which sends its rows to tasks and commits nothing itself. With `--pass-pixels` images
have one size, and views of several share a batch, which takes as long as theirs would alone.

`busy` is what the network waited, over the time from the first batch to the last; `own CPU` what
its thread computes before and after, most of it a GPU's work; the rest waits for other threads.
`no core` is the share of the time in which that thread was ready and other work of the machine had
the cores: the other shares are of what is left. `in turn` works on one chunk after the other,
`overlapping` as actors do now; a tree before that has only the first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from pmm_ray.config import CamsConfig, PredictConfig
from pmm_ray.config.backbones import IMAGENET_MEAN, IMAGENET_STD
from pmm_ray.runtime.core import lease, storage, tables
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.runtime.core.resources import Pool
from pmm_ray.runtime.mapping.chunks import make_chunks
from pmm_ray.runtime.mapping.tasks import Output, produce_chunk, run_chunk
from pmm_ray.runtime.mapping.workers import Producer, Worker
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.sources.datasets.shapes import make_shapes

try:
    from pmm_ray.runtime.mapping.overlap import OVERLAP
except ImportError:  # an older tree
    OVERLAP = 1


class Waiting(torch.nn.Module):
    """A network that only waits, and notes when it did."""

    input_mean, input_std = IMAGENET_MEAN, IMAGENET_STD
    num_foreground = 3
    align_corners = False

    def __init__(self, seconds: float, views: int) -> None:
        """Args: seconds for so many views."""
        super().__init__()
        self.seconds = seconds / views
        self.calls = self.views = 0
        self.first = self.last = (0.0, 0.0, 0.0)

    def pause(self, views: int) -> None:
        if not self.calls:
            self.first = now()
        time.sleep(self.seconds * views)
        self.last = now()
        self.calls += 1
        self.views += views

    def cam_scores(self, images_B3HW: torch.Tensor, labels_BC: Any = None) -> torch.Tensor:
        self.pause(len(images_B3HW))
        return images_B3HW[:, :, ::8, ::8]

    def encode_decode(self, inputs: torch.Tensor, metas: Any) -> torch.Tensor:
        self.pause(len(inputs))
        return torch.cat([inputs, inputs[:, :1]], 1)

    def shares(self) -> dict[str, float]:
        """Of the time from the first batch to the last."""
        passed, computed, queued = (b - a for a, b in zip(self.first, self.last, strict=True))
        shares = {"busy": self.views * self.seconds, "own CPU": computed}
        found = {name: round(part / (passed - queued), 3) for name, part in shares.items()}
        found["views a batch"] = round(self.views / self.calls, 1)
        return found | {"no core": round(queued / passed, 3)}


class OneSize(Photographs):
    """Photographs cut to 48 x 48 px."""

    def image(self, row: dict[str, Any]) -> Any:
        return np.ascontiguousarray(super().image(row)[:48, :48])


def now() -> tuple[float, float, float]:
    """Seconds of the clock, of this thread on a core, and of this thread in line for one."""
    computed, queued, _ = Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()
    return time.monotonic(), int(computed) / 1e9, int(queued) / 1e9


def cam_stage(network: Waiting, photographs: Photographs, kind: str, pixels: int | None) -> Worker:
    """The worker of an actor of `make_cams`."""
    from pmm_ray.stages import make_cams

    crops = {"scales": [0.75, 1.0], "size": 48, "stride": 32}
    values: dict[str, Any] = {"kind": kind, "crops": crops}
    if "views" in CamsConfig.model_fields:  # an older tree
        values["views"] = 4
    elif pixels or kind == "multi_crop":
        values["pass_pixels"] = pixels or 4 * 48**2
    with mock.patch.object(make_cams, "load_classifier", return_value=(network, {})):
        config = CamsConfig.model_validate(values)
        extra = {"ahead": 0} if OVERLAP == 1 and kind == "multi_crop" else {}  # without Ray
        return make_cams.cam_worker("", config, photographs, False, **extra)


def relabel_stage(network: Waiting, photographs: Photographs, pixels: int | None) -> Worker:
    """The worker of an actor of `predict_masks`, which sends scores to tasks."""
    from pmm_ray.nets.segmenter import Description
    from pmm_ray.stages import predict_masks

    network.description = Description({}, (), None, IMAGENET_MEAN, IMAGENET_STD)  # type: ignore[assignment]
    config = PredictConfig(resize_base=(64, 64))
    if pixels:
        config = config.model_copy(update={"pass_pixels": pixels})
    with mock.patch.object(predict_masks, "load_segmenter", return_value=(network, {})):
        return predict_masks.network_worker("", config, photographs, "predict_masks", False)


def work(call: Callable[[str], dict[str, Any]], todo: Sequence[str], threads: int) -> None:
    """All chunks, so many at once."""
    with ThreadPoolExecutor(threads) as pool:
        for counts in pool.map(call, todo):
            if counts["failure"] or counts["fault"] or counts["errors"] not in (0, "[]"):
                raise SystemExit(f"a chunk failed: {counts}")


def measure(stage: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Busy shares of one stage."""
    manifest = open_manifest(str(folder / "data" / "manifest.parquet"))
    kind = OneSize if options.pass_pixels else Photographs
    photographs = kind(manifest.root, manifest.apply_exif, 10**7, manifest.label_space)
    index = index_file(manifest.uri)
    todo = make_chunks(index.image_ids, {"manifest": index}, options.batch)
    found: dict[str, Any] = {"stage": stage, "images": len(index), "images a part": options.batch}
    resolve, attempt = storage.resolve, "benchmark"

    def slow(uri: str) -> tuple[Any, str]:
        time.sleep(options.storage)
        return resolve(uri)

    for name, threads in {"in turn": 1, "overlapping": OVERLAP}.items():
        network = Waiting(options.network, 4 if stage == "crops" else 2)
        if stage == "relabel":
            worker = relabel_stage(network, photographs, options.pass_pixels)
            schema, pool = predict_schema(), Pool(1, actors=True)
            producer = Producer("scores", lambda w=worker: w, schema, pool)  # type: ignore[misc]
            call = partial(produce_chunk, worker=worker, producer=producer)
        else:
            kind = {"cams": "multi_scale", "crops": "multi_crop"}[stage]
            worker = cam_stage(network, photographs, kind, options.pass_pixels)
            output = Output(str(folder / name / stage), tables.CAMS, stage, str(folder), attempt)
            call = partial(run_chunk, worker=worker, output=output)
        began = time.monotonic()
        with lease.hold(str(folder), attempt), mock.patch.object(storage, "resolve", slow):
            work(call, todo, threads)
        taken = time.monotonic() - began
        found[name] = network.shares() | {"seconds": round(taken, 2)}
        if OVERLAP == 1:
            break
    return found


def predict_schema() -> Any:
    from pmm_ray.runtime.rows.scores import SCORES

    return SCORES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("stages", nargs="+", choices=("cams", "crops", "relabel"))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="images a part")
    parser.add_argument("--pass-pixels", type=int, help="of a batch over images")
    parser.add_argument("--network", type=float, default=0.02, help="seconds a batch")
    parser.add_argument("--storage", type=float, default=0.03, help="seconds an access")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_shapes(str(folder / "data"), images=options.images, size=64, classes=3, seed=0)
        for stage in options.stages:
            print(json.dumps(measure(stage, options, folder)), flush=True)


if __name__ == "__main__":
    main()
