"""What pretended under-fitting and cyclic masks do to the segmenter.

    python benchmarks/experiments/segmenter_ladder.py OUT [--voc PATH/TO/VOCdevkit]
        [--data shapes|voc12-mini] [--reduced] [--minutes M]

Three seeds on shapes, one on a fixed subset of VOC 2012 (the mini tree of 350 + 150 photographs),
each with the five operations on the loss (none, clamp, ignore, pow, reweight; kappa and beta of the
recipe, on VOC larger ones) and cyclic rounds 0, 1 and 2. Every training is a stage of a run folder
below OUT, so the same command goes on where it stopped; `--minutes` begins no training later than
that. A folder that `pmm run recipes/voc12-mini.yaml` has filled can be named with `--voc-run`: its
masks are used. `--data` runs one of the two data sets: two such commands may run side by side.

mIoU is on held-out images and uses their pixel labels; no weights are chosen by it. After three
hours (`--minutes`) nothing more is begun. `--reduced` is for two cores; what is reduced is printed
with the table. `--write FILE` puts the table between the markers of a document.
"""

from __future__ import annotations

import argparse
import datetime
import io
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from pmm_ray.config import RunConfig, load_recipe
from pmm_ray.pipeline.rounds import Variant, evaluation, rounds
from pmm_ray.pipeline.run import Run, Step, open_run
from pmm_ray.pipeline.steps import mask_steps, steps_to_cams
from pmm_ray.runtime.cluster.connect import connect
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.stage import Stage, StageFolder

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("none", "clamp", "ignore", "pow", "reweight")
SEEDS = {"shapes": (0, 1, 2), "voc12-mini": (0,)}
ROUNDS = 2
MARKERS = ("<!-- segmenter_ladder: begin -->", "<!-- segmenter_ladder: end -->")
LABELS = Variant("labels", predict={"use_image_labels": True})

# Both scales keep the last weights: choosing by validation would use pixel labels.
COMMON = ("segmenter.choose=last", "segmenter.validation_images=0", "evaluate.ladder=[]")
# the loss of so few iterations does not come down to the paper's beta
_LIMITED = ("segmenter.underfitting.beta=1.1", "segmenter.underfitting.kappa=0.8")
FULL = {"shapes": (), "voc12-mini": _LIMITED}
_SMALL = ("segmenter.workers=1", "classifier.workers=1")
REDUCED = {
    "shapes": (
        *_SMALL,
        *("data.images=90", "classifier.epochs=6", "segmenter.iterations=100"),
        *("segmenter.crop_size=128", "segmenter.resize_base=[160, 128]"),
        *("predict.resize_base=[160, 128]", "predict.ratios=[1.0]"),
    ),
    "voc12-mini": (
        *("segmenter.workers=1", "segmenter.iterations=240", "predict.ratios=[1.0]"),
        "predict.flip=false",
        *_LIMITED,
    ),
}


def with_segmenter(step: Step, name: str) -> Step:
    """A step of `LABELS` that takes the segmenter of another variant's step."""

    def make(run: Run) -> Stage | None:
        run.folders[f"train_segmenter-{LABELS.round(0)}"] = run[name]
        return step.make(run)

    return replace(step, make=make)


@dataclass(frozen=True)
class Unit:
    """Trainings that begin together: one operation up to a round, on one data set and seed."""

    data: str
    seed: int
    kind: str
    rounds: int

    @property
    def variant(self) -> Variant:
        return Variant(self.kind, rounds=self.rounds)


def units() -> Iterator[Unit]:
    """In the order in which they matter: what is cut off is the least important."""
    for kind in KINDS:
        yield Unit("shapes", 0, kind, 0)
    for kind in ("clamp", "none"):
        yield Unit("shapes", 0, kind, ROUNDS)
    for seed in SEEDS["shapes"][1:]:
        for kind in KINDS:
            yield Unit("shapes", seed, kind, 0)
    for kind in KINDS:
        yield Unit("voc12-mini", 0, kind, 0)
    for kind in ("clamp", "none"):
        yield Unit("voc12-mini", 0, kind, ROUNDS)
    for data, seeds in SEEDS.items():
        for kind in KINDS:
            for seed in seeds:
                yield Unit(data, seed, kind, ROUNDS)


class Ladder:
    """The experiment: its folders, its settings, and what is done of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.scale = REDUCED if options.reduced else FULL

    def folder(self, data: str, seed: int) -> str:
        if data == "voc12-mini" and self.options.voc_run:
            return storage.absolute(str(self.options.voc_run))
        size = "reduced" if self.options.reduced else "full"
        return storage.absolute(str(self.options.out / f"{data}-s{seed}-{size}"))

    def config(self, data: str, seed: int, variant: Variant | None = None) -> RunConfig:
        settings = [*COMMON, *self.scale[data], f"seed={seed}"]
        settings += [f"data.root={self.options.voc}"] if data == "voc12-mini" else []
        settings += [f"segmenter.underfitting.kind={variant.name}"] if variant else []
        return load_recipe(ROOT / "recipes" / f"{data}.yaml", settings)

    def run(self, unit: Unit) -> None:
        """Run what is not done of a unit, and what the image's labels do to its first relabel."""
        variant = unit.variant
        config = self.config(unit.data, unit.seed, variant)
        own = rounds(config, variant)
        if unit == Unit(unit.data, 0, "clamp", ROUNDS):
            # the masks of the round's segmenter, forbidden what the labels do not name
            first, scored = own[0], f"evaluate-cyclic-{LABELS.round(1)}"
            masks, train = LABELS.training_masks(1), config.data.train_split
            relabel = next(s for s in rounds(config, LABELS) if s.name == masks)
            own += [with_segmenter(relabel, first.name), evaluation(scored, "", masks, train)]
        steps = [*steps_to_cams(config), *mask_steps(config), *own]
        place, progress = self.folder(unit.data, unit.seed), Progress(stream=io.StringIO())
        names = [step.name for step in own]
        with open_run(place, config, steps, progress, adds=names) as run:
            run.follow()
            run.session.write_record(finished=True)

    def score(self, data: str, seed: int, stage: str, metric: str) -> float | None:
        """A metric of a finished stage of the run; None: it is not done.

        Of several, with other settings, the one that was finished last counts.
        """
        place = Path(self.folder(data, seed))
        done = sorted(
            place.glob(f"{stage}-????????/summary.json"), key=lambda path: path.stat().st_mtime
        )
        for found in reversed(done):
            summary = StageFolder(str(found.parent), stage, found.parent.name[-8:]).summary()
            if summary is not None and metric in summary.metrics:
                return summary.metrics[metric]
        return None


def cell(values: list[float]) -> str:
    """Mean of the seeds that are done, their spread and their number."""
    if not values:
        return "not run"
    text = f"{mean(values) * 100:.1f}"
    return text if len(values) == 1 else f"{text} ± {stdev(values) * 100:.1f} ({len(values)})"


def over_seeds(ladder: Ladder, data: str, stage: str, metric: str = "mean_iou") -> str:
    scores = [ladder.score(data, seed, stage, metric) for seed in SEEDS[data]]
    return cell([score for score in scores if score is not None])


def tables(ladder: Ladder) -> str:
    """All tables, in Markdown."""
    lines = []
    for data in SEEDS:
        seeds = SEEDS[data]
        train, held_out = (
            over_seeds(ladder, data, f"evaluate-ppmg{suffix}") for suffix in ("-train", "")
        )
        lines += [f"### {data}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}", ""]
        lines += [f"Pseudo-masks (PPMG): {train} on the training split, {held_out} held out.", ""]
        lines += [
            "| segmenter, held-out mIoU % | cycle 0 | cycle 1 | cycle 2 |",
            "|---|---|---|---|",
        ]
        for kind in KINDS:
            row = [
                over_seeds(ladder, data, f"evaluate-segmenter-{kind}-r{number}")
                for number in range(ROUNDS + 1)
            ]
            lines.append(f"| {kind} | {' | '.join(row)} |")
        lines += [
            "",
            "| training masks, mIoU % (agreement %) | cycle 1 | cycle 2 |",
            "|---|---|---|",
        ]
        for kind in KINDS:
            row = []
            for number in range(1, ROUNDS + 1):
                scored = over_seeds(ladder, data, f"evaluate-cyclic-{kind}-r{number}")
                same = over_seeds(ladder, data, f"compare_masks-{kind}-r{number}", "agreement")
                row.append(scored if scored == "not run" else f"{scored} ({same})")
            lines.append(f"| {kind} | {' | '.join(row)} |")
        free = ladder.score(data, 0, "evaluate-cyclic-clamp-r1", "mean_iou")
        labelled = ladder.score(data, 0, "evaluate-cyclic-labels-r1", "mean_iou")
        if free is not None and labelled is not None:
            lines += [
                "",
                "`predict.use_image_labels` on the masks of cycle 1 (clamp, seed 0): "
                f"{free * 100:.1f} without, {labelled * 100:.1f} with.",
            ]
        lines.append("")
    return "\n".join(lines)


def about(ladder: Ladder) -> str:
    """What was run, where, and what is reduced."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    lines = [f"{datetime.date.today()}, commit {commit}, {platform.machine()}, no GPU."]
    for data, settings in ladder.scale.items():
        lines.append(f"{data}: recipes/{data}.yaml with `{' '.join((*COMMON, *settings))}`.")
    return "  \n".join(lines)


def write(text: str, document: Path) -> None:
    """Replace what stands between the markers of a document."""
    before, _, rest = document.read_text(encoding="utf-8").partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    document.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--voc", type=Path, help="VOCdevkit; without it VOC is left out")
    parser.add_argument("--voc-run", type=Path, help="run folder of the recipe to go on in")
    parser.add_argument("--data", choices=tuple(SEEDS), help="only this one")
    parser.add_argument("--reduced", action="store_true")
    parser.add_argument("--minutes", type=float, default=180.0)
    parser.add_argument("--write", type=Path, help="document to put the tables into")
    options = parser.parse_args()
    ladder = Ladder(options)
    deadline = time.monotonic() + 60 * options.minutes
    planned = [u for u in units() if u.data == "shapes" or options.voc]
    planned = [u for u in planned if options.data in (None, u.data)]
    with connect("local", RunConfig().runtime):
        for unit in planned:
            if time.monotonic() > deadline:
                print(f"out of time before {unit}")
                break
            started = time.monotonic()
            ladder.run(unit)
            print(f"{unit}: {time.monotonic() - started:.0f} s", flush=True)
    text = f"{about(ladder)}\n\n{tables(ladder)}"
    print(text)
    if options.write:
        write(text, options.write)


if __name__ == "__main__":
    main()
