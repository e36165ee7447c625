"""The demo's CAM and predict stages on CPUs: this checkout beside an older one, in turn.

    git worktree add /tmp/older e601e41
    python benchmarks/cpu_stages.py /tmp/older SCRATCH [--repeats 3] [--stages predict]

e601e41 is the last commit before workers overlapped. Both sides train once, by their own code, on
the same shapes; then each makes its CAMs and `pmm predict` anew, in turn. Rates are those that the
stages write into their summaries, start-up left out. The ratio is this checkout's over the older
one's; above 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
# the demo's networks and views, with as little training as makes a model
RECIPE = """
name: cpu-stages
data: {source: folder}
classifier: {backbone: efficientnet_lite0, weights: imagenet, output_stride: 16, epochs: 1,
  batch_size: 16, learning_rate: 0.01, resize_long: [112, 176], crop_size: 128}
cams: {scales: [1.0, 2.0, 3.0], stride: 4}
segmenter: {channels: 64, output_stride: 16, iterations: 20, batch_size: 8, freeze_norm: true,
  resize_base: [200, 160], crop_size: 160}
predict: {ratios: [1.0, 1.5], resize_base: [200, 160]}
cycles: {rounds: 0}
"""
STAGES = {"CAMs": "make_cams", "predict": "predict_masks"}


def main() -> None:
    """Run both checkouts in turn and print a row for each stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("older", type=Path, help="a checkout of the older commit")
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stages", nargs="+", choices=[*STAGES], default=[*STAGES])
    args = parser.parse_args()
    scratch: Path = args.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    data = scratch / "shapes"
    if not data.exists():
        pmm(HERE, "data", "shapes", str(data), "--images", str(args.images), "--size", "128")
    recipe = scratch / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    sides = {"older": args.older.resolve(), "now": HERE}
    run = ["run", str(recipe), "--set", f"data.root={data}", "--run-dir"]
    for side, checkout in sides.items():
        pmm(checkout, *run, str(scratch / side))
    rates: dict[tuple[str, str], list[float]] = {}
    for turn in range(args.repeats):
        for side, checkout in list(sides.items())[:: 1 if turn % 2 else -1]:
            place, out = scratch / side, scratch / f"{side}-masks"
            if "CAMs" in args.stages:
                pmm(checkout, *run, str(place), "--only", "make_cams", "--fresh")
                rates.setdefault(("CAMs", side), []).append(rate(place, STAGES["CAMs"]))
                pmm(checkout, *run, str(place))  # computes nothing, and names the segmenter again
            if "predict" in args.stages:
                shutil.rmtree(out, ignore_errors=True)
                images = str(data / "images")
                pmm(checkout, "predict", str(place), "--images", images, "--out", str(out))
                rates.setdefault(("predict", side), []).append(rate(out, STAGES["predict"]))
    print(f"{args.images} images, {args.repeats} turns; {commit(sides['older'])}, {commit(HERE)}")
    print("| stage | older, images/s | now, images/s | ratio of medians |\n|---|---|---|---|")
    for name in args.stages:
        older, now = rates[name, "older"], rates[name, "now"]
        shown = (", ".join(f"{value:.2f}" for value in side) for side in (older, now))
        ratio = statistics.median(now) / statistics.median(older)
        print(f"| {name} | {' | '.join(shown)} | {ratio:.2f} |")


def pmm(checkout: Path, *words: str) -> None:
    """A command of a checkout, with this environment's packages."""
    call = [sys.executable, "-c", "from pmm_ray.cli import main; main()", *words]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(call, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)


def rate(folder: Path, stage: str) -> float:
    """Images per second of a stage, as its summary has it."""
    (summary,) = folder.glob(f"{stage}-*/summary.json")
    return float(json.loads(summary.read_text(encoding="utf-8"))["images_per_second"])


def commit(checkout: Path) -> str:
    """The commit of a checkout, short."""
    call = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
