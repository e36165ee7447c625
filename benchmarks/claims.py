"""Every claim of the paper as one row: the same photographs with it and without it.

    python benchmarks/claims.py OUT --voc PATH/TO/VOCdevkit [--reduced] [--seeds 0,1,2]
        [--minutes M] [--only UNIT ...] [--write docs/reference/claims.md]

`--voc` is a tree as recipes/voc12-animals.yaml takes it. Each seed has a run folder below OUT whose
stages all rows share, so the same command goes on where it stopped. `--minutes` begins no unit
later than that. `OUT/claims.json` says what was done, what it took and what came out;
`OUT/pictures` shows for each row the photographs that gain and lose most.

Without `--reduced` the sizes are the recipe's, and a seed takes a day of two cores. `--reduced`
trains small networks on photographs of half the size, for an hour and more; they are written to
OUT. docs/reference/claims.md says how the rows are made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from claims_page import write_page
from claims_pictures import draw
from claims_results import score_all
from claims_rows import UNITS, Unit
from PIL import Image

from pmm_ray.config import RunConfig, load_recipe
from pmm_ray.pipeline.run import open_run
from pmm_ray.runtime.cluster.connect import connect
from pmm_ray.runtime.core.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "voc12-animals.yaml"

_TRAINED = ("head_init", "optimizer", "schedule", "learning_rate", "head_multiplier")
_HEAD = ("head_bias", "skip_absent", "freeze_first", "training_stride")
_CLASSIFIER = (*_TRAINED, *_HEAD, "weight_decay", "epochs", "batch_size", "channels_last")
# multi-crop training is the classifier's; the paper's exponents suit maps whose best is 11, and
# ours have it at 3: those of the base masks and of the walk are scaled alike
_COMMON = (
    *("base.alpha=6.5", "affinity.alpha_low=1.0", "affinity.alpha_high=6.5"),
    *("affinity.walk.alpha=1.6", "affinity.optimizer=adamw", "affinity.schedule=cosine"),
    *("affinity.learning_rate=0.0001", "affinity.weight_decay=0.0001"),
    *("segmenter.underfitting.scope=group", "evaluate.ladder=[]"),
    *("classifier.validation_images=0", "multicrop.validation_images=0"),
)
FULL = (
    *_COMMON,
    *("multicrop.crops.size=320", "multicrop.crops.stride=214", "base.cams.scales=[0.75,1.0]"),
    *("affinity.crop_size=320", "segmenter.iterations=4000", "segmenter.learning_rate=0.0003"),
)
_SCALES = "[0.75,1.0,1.25,1.5]"
# what a CRF's kernels are of a photograph stays the same at half its size
_CRF = "{bilateral_sigma: 40, gaussian_sigma: 1.5}"
REDUCED = (
    *_COMMON,
    *("masks.alpha=auto", f"masks.crf={_CRF}", f"base.crf={_CRF}", f"affinity.crf={_CRF}"),
    *("classifier.resize_long=[200,300]", "classifier.crop_size=192"),
    *("cams.scales=[1.0,1.5]", "cams.flip=false", "cams.stride=2"),
    *("base.cams.scales=[1.0,1.5]", "base.cams.flip=false", "base.cams.stride=2"),
    *(
        "multicrop.crops.size=160",
        "multicrop.crops.stride=107",
        f"multicrop.crops.scales={_SCALES}",
    ),
    *("affinity.crop_size=192", "affinity.epochs=8", "affinity.learning_rate=0.0003"),
    *("segmenter.iterations=1200", "segmenter.crop_size=128", "segmenter.channels=64"),
    *("segmenter.learning_rate=0.0004", "segmenter.resize_base=[250,188]"),
    *("segmenter.resize_ratio=[0.6,1.3]", "predict.resize_base=[250,188]"),
    *("predict.ratios=[1.0]", "predict.flip=false", "predict.crf.bilateral_sigma=33"),
)
REDUCED_TRAIN, REDUCED_SIDE = 320, 250
"""Photographs of the training split at most; long side of all, px."""


def halved(tree: Path, out: Path, train: int, long_side: int) -> Path:
    """A VOC tree of smaller photographs, and of a part of the training split, chosen by hash.

    Returns:
        Its VOCdevkit, below `out`. What is there already stays.
    """
    voc, small = tree / "VOC2012", out / "VOCdevkit" / "VOC2012"
    lists = "ImageSets/Segmentation"
    for split, count in (("train_animals", train), ("val_animals", None)):
        file = small / lists / f"{split}.txt"
        if file.exists():
            continue
        ids = (voc / lists / f"{split}.txt").read_text().split()
        chosen = sorted(sorted(ids, key=lambda i: hashlib.sha256(i.encode()).digest())[:count])
        for image_id in chosen:
            for folder, kind, filter_ in (
                ("JPEGImages", "jpg", Image.Resampling.LANCZOS),
                ("SegmentationClassAug", "png", Image.Resampling.NEAREST),
            ):
                with Image.open(voc / folder / f"{image_id}.{kind}") as image:
                    ratio = long_side / max(image.size)
                    size = (round(image.width * ratio), round(image.height * ratio))
                    target = small / folder / f"{image_id}.{kind}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    image.resize(size, filter_).save(target, quality=92)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(chosen) + "\n")
    return small.parent


def with_classifier(recipe: Path, settings: Sequence[str]) -> list[str]:
    """The settings, and multi-crop training by those of the recipe's classifier."""
    classifier = load_recipe(recipe, settings).classifier
    fields = {name: getattr(classifier, name) for name in _CLASSIFIER}
    return [*settings, *(f"multicrop.{name}={json.dumps(v)}" for name, v in fields.items())]


def do(unit: Unit, place: Path, config: RunConfig, log: Path) -> dict[str, str]:
    """Do what is not done of a unit; returns the folders of its steps, by name."""
    steps = unit.steps(config)
    with (
        log.open("a", encoding="utf-8") as stream,
        open_run(
            str(place), config, steps, Progress(stream=stream), adds=[step.name for step in steps]
        ) as run,
    ):
        run.follow()
        run.session.write_record(finished=True)
        return {name: Path(folder.uri).name for name, folder in run.folders.items()}


def about(command: Sequence[str]) -> dict[str, Any]:
    """The machine, the date and the command."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {gpu}",
        "command": " ".join(command),
    }


def commit() -> str:
    """The commit of this checkout, short."""
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()


def work(
    results: dict[str, Any],
    file: Path,
    units: Sequence[Unit],
    seeds: Sequence[int],
    settings: Sequence[str],
    recipe: Path,
    minutes: float | None,
    reduced: bool = False,
) -> None:
    """Do every unit of every seed that `results` does not have; writes `file` after each."""
    began = time.monotonic()
    for seed in seeds:
        done = results["seeds"].setdefault(str(seed), {})
        for unit in units:
            if unit.name in done:
                continue
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                print(f"out of time before seed {seed}, {unit.name}", flush=True)
                return
            started = time.monotonic()
            more = [*unit.settings, *(unit.reduced if reduced else ()), f"seed={seed}"]
            config = load_recipe(recipe, [*settings, *more])
            folders = do(unit, file.parent / f"seed-{seed}", config, file.parent / "log.txt")
            seconds = time.monotonic() - started
            done[unit.name] = {
                "folders": folders,
                "seconds": round(seconds, 1),
                "commit": commit(),
                "settings": more,
                "underfitting": config.segmenter.underfitting.model_dump(),
                "masks": config.masks.model_dump(mode="json"),
            }
            file.write_text(json.dumps(results, indent=1))
            print(f"seed {seed}, {unit.name}: {seconds:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Do, score, draw and write; returns what `claims.json` holds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--voc", type=Path, required=True, help="VOCdevkit of the six classes")
    parser.add_argument("--reduced", action="store_true", help="small photographs and networks")
    parser.add_argument("--seeds", default="0", help="0,1,2")
    parser.add_argument("--minutes", type=float, help="begin no unit later than this")
    parser.add_argument("--only", nargs="+", choices=[u.name for u in UNITS], help="these units")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-pictures", action="store_true")
    parser.add_argument("--write", type=Path, help="page to put the table into")
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    root = options.voc.resolve()
    if options.reduced:
        root = halved(root, out / "half", REDUCED_TRAIN, REDUCED_SIDE)
    size = [*(REDUCED if options.reduced else FULL), *options.settings]
    settings = [f"data.root={root}", *with_classifier(options.recipe, size)]
    file = out / "claims.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"seeds": {}}
    if results.setdefault("settings", size) != size:
        parser.error(f"{out} was begun with other settings: choose another folder")
    words = ["python", "benchmarks/claims.py", "OUT", "--voc", "VOCDEVKIT"]
    words += ["--reduced"] if options.reduced else []
    results["about"] = about([*words, "--seeds", options.seeds])
    chosen = [unit for unit in UNITS if options.only is None or unit.name in options.only]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    with connect("local", RunConfig().runtime):
        how = (settings, options.recipe, options.minutes, options.reduced)
        work(results, file, chosen, seeds, *how)
    results |= score_all(results, out)
    file.write_text(json.dumps(results, indent=1))
    if not options.no_pictures:
        draw(results, out)
    text = write_page(results, options.write)
    print(text)
    return results


if __name__ == "__main__":
    main()
