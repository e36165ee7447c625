"""From the folders of finished units to the rows of `claims.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from claims_rows import Claim, Side, claims
from claims_score import Scored, compare, read, verdict

from pmm_ray.config import load_recipe
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.stage import StageFolder

# an affinity of 0.5 for every pair has a loss of ln 2
_LEARNT = 0.9
_SAME = "both sides are the same masks"


def stage_of(side: Side, seed: Mapping[str, Any]) -> str | None:
    """The name of a side's stage among what a seed has done; None: it has not."""
    done = seed.get(side.unit, {}).get("folders", {})
    names = [name for name in done if fnmatchcase(name, side.stage)]
    return max(names) if names else None


def folder_of(unit: Mapping[str, Any], stage: str, place: Path) -> StageFolder:
    """The folder of a finished stage of a unit, in a seed's run folder."""
    name = unit["folders"][stage]
    return StageFolder(str(place / name), stage, name.rsplit("-", 1)[1])


def folder_name(side: Side, seed: Mapping[str, Any]) -> str:
    """The name of the folder of a side that is done."""
    name: str = seed[side.unit]["folders"][stage_of(side, seed)]
    return name


def manifest_of(seed: Mapping[str, Any], place: Path) -> Manifest:
    """The data of a seed's run."""
    unit = next(iter(seed.values()))
    return open_manifest(folder_of(unit, "import_data", place).path("manifest.parquet"))


def scored(side: Side, seed: Mapping[str, Any], place: Path, classes: int) -> Scored | None:
    """A side's scores of every photograph; None: not done."""
    stage = stage_of(side, seed)
    if stage is None:
        return None
    return read(folder_of(seed[side.unit], stage, place).uri, classes)


def row(claim: Claim, seeds: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """A claim's row, of all seeds that have both of its sides."""
    pairs, done, shares, notes, differ = [], [], [], [], False
    for name, seed in seeds.items():
        if not seed:
            continue
        place = out / f"seed-{name}"
        classes = manifest_of(seed, place).label_space.num_classes
        sides = [scored(side, seed, place, classes) for side in (claim.after, claim.before)]
        if sides[0] is None or sides[1] is None:
            continue
        pairs.append((sides[0], sides[1]))
        done.append(int(name))
        differ |= folder_name(claim.after, seed) != folder_name(claim.before, seed)
        both = zip(pairs[-1], (claim.after, claim.before), strict=True)
        notes.append([exponent(found, side, seed, place) for found, side in both])
        if claim.limited:
            stage = f"train_segmenter-{claim.limited}-r0"
            metrics = folder_of(seed[claim.limited], stage, place).finished().metrics
            shares.append(metrics["underfitting_share"])
    compared = compare(pairs) if pairs else None
    reason = one_search(notes) if differ else _SAME
    if claim.limited and pairs:
        reason = too_high(claim.limited, seeds, out)
    if "walk" in (claim.after.unit, claim.before.unit) and pairs:
        reason = reason or by_chance(seeds, out)
    return {
        "name": claim.name,
        "title": claim.title,
        "source": claim.source,
        "paper": claim.paper,
        "verdict": verdict(compared, reason),
        "seeds": done,
        "exponents": notes,
        "limited": shares,
        **(compared or {}),
    }


def one_search(exponents: Sequence[Sequence[float | None]]) -> str:
    """Why two sides cannot be compared: one alone has the best of many exponents; empty: no."""
    alone = any((after is None) != (before is None) for after, before in exponents)
    return "only one side has the best of many exponents" if alone else ""


def too_high(unit: str, seeds: Mapping[str, Any], out: Path) -> str:
    """Why an operation could not do its work: the loss without it stayed above beta; empty: no."""
    ends, beta = [], 0.0
    for name, seed in seeds.items():
        if "none" in seed and unit in seed:
            place = out / f"seed-{name}"
            section = load_recipe(place / "resolved.yaml").segmenter
            beta = seed[unit]["underfitting"]["beta"]
            heads = 1 + section.auxiliary_weight
            metrics = folder_of(seed["none"], "train_segmenter-none-r0", place).finished().metrics
            ends.append(metrics["loss"] / heads)
    if max(ends) < beta:
        return ""
    said = ", ".join(f"{end:.2f}" for end in ends)
    return f"the training loss ended at {said} a head, beta is {beta:g}"


def by_chance(seeds: Mapping[str, Any], out: Path) -> str:
    """Why a walk says nothing: its network did not learn whom pixels belong to; empty: it did."""
    ends = [
        folder_of(seed["walk"], "train_affinity", out / f"seed-{name}").finished().metrics["loss"]
        for name, seed in seeds.items()
        if "walk" in seed
    ]
    if max(ends) < _LEARNT * math.log(2):
        return ""
    said = ", ".join(f"{end:.2f}" for end in ends)
    return f"the affinity network's loss ended at {said}, chance is {math.log(2):.2f}"


def exponent(found: Scored, side: Side, seed: Mapping[str, Any], place: Path) -> float | None:
    """The best exponent of a sweep; None: it has none."""
    stage = stage_of(side, seed)
    assert stage is not None, "its scores were read"
    details = folder_of(seed[side.unit], stage, place).finished().details
    if "alpha" not in details.get("fields", []):
        return None
    return float(details["combinations"][found.best]["alpha"])


def score_all(results: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """`rows`, in the order of `claims`; `trainings`; `classes`, the names of all classes."""
    seeds = results["seeds"]
    names: tuple[str, ...] = ()
    for name, seed in seeds.items():
        if seed:
            names = manifest_of(seed, out / f"seed-{name}").label_space.names
    return {
        "rows": [row(claim, seeds, out) for claim in claims()],
        "trainings": trainings(results, out),
        "classes": list(names),
    }


def trainings(results: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """What each segmenter's training came to: its loss, and the share of limited images."""
    found = []
    for name, seed in results["seeds"].items():
        for unit in seed.values():
            for stage in unit["folders"]:
                if stage.startswith("train_segmenter-"):
                    summary = folder_of(unit, stage, out / f"seed-{name}").finished()
                    entry = {"seed": int(name), "stage": stage, **summary.metrics}
                    if entry not in found:
                        found.append(entry)
    return found
