"""The classifiers on a CPU: a SEAM training step of each backbone, and multi-crop CAMs.

    python benchmarks/classifier.py steps [--backbones scalenet101 ...]
    python benchmarks/classifier.py cams --image PHOTO [--backbone efficientnet_lite0] [--views 1]

`steps`: one step (both branches, backward, SGD) at 448 x 448 px, batch 1, each backbone in a
process of its own. `cams`: the stage's batches of windows against one window and then its mirror
image after the other, same network, same threads, by turns; also the largest difference of the
maps, and the peak memory of each side in a process of its own. But for EfficientNet-lite0's the
weights are random: they change no time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BACKBONES = ("efficientnet_lite0", "scalenet101", "resnet38", "res2net101")
SCALES = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0)


def network(backbone: str) -> Any:
    """SEAM's network for 20 classes, random weights, as `train_classifier` builds it."""
    import torch

    from pmm_ray.config import ClassifierConfig
    from pmm_ray.nets.registry import build_classifier

    torch.manual_seed(0)
    weights = "imagenet" if backbone == "efficientnet_lite0" else "none"
    values = {"kind": "seam", "backbone": backbone, "weights": weights, "freeze_first": True}
    return build_classifier(ClassifierConfig.model_validate(values), 20)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds, CPU seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_step(backbone: str, threads: int) -> dict[str, float]:
    """A SEAM training step after one that warms up."""
    import torch

    from pmm_ray.stages.train_classifier import SiameseLoss

    torch.set_num_threads(threads)
    loss = SiameseLoss(network(backbone)).train()
    trained = [p for p in loss.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9)
    images = torch.randn(1, 3, 448, 448)
    targets = torch.zeros(1, 20)
    targets[0, [7, 14]] = 1.0

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss(images, targets)
        value.backward()
        optimizer.step()
        return float(value.detach())

    step()
    _, seconds, cpu = timed(step)
    parameters = sum(p.numel() for p in loss.parameters()) / 1e6
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak_mb(), "millions": parameters}


def photograph(path: str) -> Any:
    import numpy as np
    from PIL import Image

    from pmm_ray.nets.crop_cams import Photograph

    pixels = np.asarray(Image.open(path).convert("RGB"))
    return Photograph(0, pixels, [8, 15], pixels.shape[:2])


def cams_config(arguments: argparse.Namespace) -> Any:
    from pmm_ray.config import CamsConfig

    crops = {"geometry": arguments.geometry, "scales": arguments.scales}
    values = {
        "kind": "multi_crop",
        "crops": crops,
        "stride": 1,
        "pass_pixels": arguments.views * 448**2,
    }
    return CamsConfig.model_validate(values)


def batched(model: Any, subject: Any, config: Any) -> Any:
    """The stage's own way."""
    import torch

    from pmm_ray.nets.crop_cams import CropCams

    ((_, maps),) = CropCams(model, config, torch.device("cpu")).merged([subject])
    return maps


def window_by_window(model: Any, subject: Any, config: Any) -> Any:
    """The released code's way: one window, then its mirror image."""
    import torch
    from torch.nn import functional

    from pmm_ray.method.multicrop import WindowMerger, windows
    from pmm_ray.nets.views import cut_windows, normalise_views

    height, width = subject.pixels_hw3.shape[:2]
    crops, size = config.crops, config.crops.size
    image = torch.tensor(subject.pixels_hw3).permute(2, 0, 1)[None]
    rows = [label - 1 for label in subject.labels]
    merger = WindowMerger(len(rows), height, width)
    options = {"geometry": crops.geometry, "size": size, "stride": crops.stride}
    with torch.inference_mode():
        for of_scale in windows(height, width, crops.scales, **options):
            pieces = cut_windows(image, of_scale, crops.geometry, size)
            for window, piece in zip(of_scale, pieces, strict=True):
                view = normalise_views(piece, model.input_mean, model.input_std)
                rest = [size - side for side in view.shape[2:]]
                top, left = rest[0] // 2, rest[1] // 2
                inner = (slice(top, top + view.shape[2]), slice(left, left + view.shape[3]))
                view = functional.pad(view, (left, rest[1] - left, top, rest[0] - top))
                for mirrored in (False, True):
                    maps = model.cam_scores(view.flip(-1) if mirrored else view)[:, rows]
                    maps = functional.interpolate(
                        maps, (size, size), mode="bilinear", align_corners=model.align_corners
                    )
                    maps = (maps.flip(-1) if mirrored else maps)[:, :, *inner]
                    place = window.original
                    maps = functional.interpolate(
                        maps, (place.height, place.width), mode="bilinear", align_corners=False
                    )
                    merger.add(maps[0], place)
    return merger.mean()


WAYS = {"batched": batched, "window_by_window": window_by_window}


def one_way(arguments: argparse.Namespace) -> dict[str, float]:
    """Peak memory of one way alone, and what the network itself takes."""
    import torch

    torch.set_num_threads(arguments.threads)
    model = network(arguments.backbone).eval()
    subject, config = photograph(arguments.image), cams_config(arguments)
    before = peak_mb()
    WAYS[arguments.way](model, subject, config)
    return {"peak_mb": peak_mb(), "network_mb": before}


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways by turns in this process."""
    import torch

    from pmm_ray.method.multicrop import windows

    torch.set_num_threads(arguments.threads)
    model = network(arguments.backbone).eval()
    subject, config = photograph(arguments.image), cams_config(arguments)
    with torch.inference_mode():
        model.cam_scores(torch.zeros(arguments.views, 3, 448, 448))  # warm
        model.cam_scores(torch.zeros(1, 3, 448, 448))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    maps: dict[str, Any] = {}
    for turn in range(arguments.repeats):
        for way in WAYS if turn % 2 else reversed(WAYS):
            maps[way], wall, used = timed(lambda way=way: WAYS[way](model, subject, config))
            seconds[way].append(wall)
            cpu[way].append(used)
    first, second = maps.values()
    difference = float((first - second).abs().max() / second.abs().max())
    height, width = subject.pixels_hw3.shape[:2]
    count = sum(map(len, windows(height, width, config.crops.scales, geometry=arguments.geometry)))
    best = {way: min(values) for way, values in cpu.items()}
    return {
        "windows": count,
        "seconds": {way: min(values) for way, values in seconds.items()},
        "cpu_seconds": best,
        "cpu_ratio": best["batched"] / best["window_by_window"],
        "relative_difference": difference,
    }


def in_process(*arguments: str) -> dict[str, Any]:
    """The JSON that this script prints in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("steps", "cams", "step", "way", "compare"))
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--backbone", default=BACKBONES[0])
    parser.add_argument("--image")
    parser.add_argument("--geometry", default="paper")
    parser.add_argument("--scales", nargs="+", type=float, default=SCALES)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--way", choices=tuple(WAYS), default="batched")
    arguments = parser.parse_args()
    if arguments.what == "step":
        print(json.dumps(one_step(arguments.backbone, arguments.threads)))
    elif arguments.what == "way":
        print(json.dumps(one_way(arguments)))
    elif arguments.what == "compare":
        print(json.dumps(compare(arguments)))
    elif arguments.what == "steps":
        for backbone in arguments.backbones:
            threads = ("--threads", str(arguments.threads))
            print(backbone, in_process("step", "--backbone", backbone, *threads), flush=True)
    else:
        same = [word for word in sys.argv[1:] if word != "cams"]
        print(in_process("compare", *same), flush=True)
        for way in WAYS:
            print(way, in_process("way", "--way", way, *same), flush=True)


if __name__ == "__main__":
    main()
