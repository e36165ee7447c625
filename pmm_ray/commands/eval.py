"""`pmm eval`: any masks against any ground truth, on Ray."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pmm_ray.commands import command
from pmm_ray.config import load_recipe, refuse_unread
from pmm_ray.labels import LabelSpace
from pmm_ray.pipeline.run import Run, Step, open_command
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.accounting import account, close
from pmm_ray.runtime.core.errors import (
    BudgetExceededError,
    CannotRunError,
    ErrorRow,
    error_budget,
)
from pmm_ray.runtime.core.index import TableIndex
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import Stage, Summary
from pmm_ray.sources.labels.label_files import read_label_space
from pmm_ray.sources.masks.mask_files import MaskFiles, find_masks, write_listing
from pmm_ray.sources.masks.mask_pairs import Matched, match_masks
from pmm_ray.sources.reading.names import safe_image_id, stem_path
from pmm_ray.sources.reading.text import read_lines
from pmm_ray.stages import score_masks


@command
def score_folder(
    progress: Progress,
    masks: str | Path,
    ground_truth: str | Path,
    *,
    out: str | Path | None = None,
    label_space: str | None = None,
    images: str | Path | None = None,
    mask_ids: str = "auto",
    truth_ids: str = "auto",
    settings: Sequence[str] = (),
    address: str = "auto",
) -> None:
    """Score masks, print the class table, and write `OUT/scores.json`.

    Args:
        masks: a masks table (a stage's folder or a Parquet file), or a tree of PNG files.
        ground_truth: the same.
        out: folder for the scores and what could not be scored; default: one below `runs/`, named
            after the other arguments. The same command goes on where it was interrupted.
        label_space: see `read_label_space`; default: that of the manifest beside either side.
        images: text file whose lines begin with the ids that count; default: all there are.
        mask_ids, truth_ids: what the values are: `contiguous` ids, the `dataset`'s own, or `auto`.
        settings: `errors.budget=N` and other overrides of the defaults.
        address: see `run_recipe`.
    """
    wanted = [str(masks), str(ground_truth), label_space, str(images), mask_ids, truth_ids]
    name = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:8]
    place = storage.absolute(str(Path("runs") / f"eval-{name}" if out is None else out))

    config = load_recipe(None, settings)
    refuse_unread(settings, "pmm eval", ("errors", "runtime"))

    def make(run: Run) -> Stage:
        return score_masks.stage((found, truth), matched, pairs, space, readings, unmatched)

    steps = [Step(score_masks.STAGE, make)]
    with open_command(place, config, steps, progress, address) as run:
        found = find_masks(str(masks), storage.join(place, "mask-files.parquet"))
        truth = find_masks(str(ground_truth), storage.join(place, "truth-files.parquet"))
        space = _label_space(label_space, found, truth)
        listed = None if images is None else read_lines(storage.absolute(str(images)), "list")
        readings = (_reading(truth_ids, truth), _reading(mask_ids, found))
        matched, pairs, unmatched, left_out = _match(run.session, found, truth, listed)
        run.say(f"{score_masks.STAGE}: pixel labels used ({len(pairs)} images of {truth.place})")
        run.follow()
        stage = run[score_masks.STAGE]
        values = [ErrorRow(**row) for row in stage.finished().details["values"]]
        tables.write_errors(storage.join(place, "errors"), "values", values)
        _show(stage.finished(), place)
        failed = [*unmatched, *tables.read_errors(stage.errors_uri), *values]
        total = account(
            "masks",
            found=matched.found + sum(side.others for side in (found, truth)),
            made=stage.finished().details["scored"],
            errors=failed,
            left_out=left_out,
        )
        close(total, f"{place}/scores.json, {place}/errors, {stage.errors_uri}", run.say)


def _label_space(word: str | None, masks: MaskFiles, truth: MaskFiles) -> LabelSpace:
    if word is not None:
        return read_label_space(word)
    spaces = [side.space for side in (masks, truth) if side.space is not None]
    if not spaces:
        raise CannotRunError(
            "what the values in the masks mean is not known: give --label-space voc12, coco14, or "
            "a file with the class names"
        )
    if any(space.names != spaces[0].names for space in spaces):
        raise CannotRunError(
            f"the manifests beside {masks.place} and {truth.place} name different classes: say "
            "which with --label-space"
        )
    return spaces[0]


def _reading(wanted: str, files: MaskFiles) -> str:
    """Tables of ours hold contiguous ids, always."""
    return "contiguous" if wanted == "auto" and files.is_table else wanted


def _match(
    session: Session, masks: MaskFiles, truth: MaskFiles, listed: Sequence[str] | None
) -> tuple[Matched, TableIndex, list[ErrorRow], dict[str, list[str]]]:
    """The images to score, as a table of ids and places; those that lack one side; the rest."""
    place = session.run_dir
    pairs = storage.join(place, "mask-pairs.parquet"), storage.join(place, "truth-pairs.parquet")
    found = match_masks(masks, truth, pairs, listed)
    stage = score_masks.STAGE
    errors = [ErrorRow(i, stage, "missing", text) for i, text in sorted(found.lacking.items())]
    errors += [ErrorRow(i, stage, "label", text) for i, text in sorted(found.unsure.items())]
    asked = {*found.image_ids, *found.lacking, *found.unsure}
    left_out = {"not in the list": list(found.unasked)}
    for side, what in ((masks, "mask"), (truth, "ground truth")):
        for reason, names in side.left_out.items():
            left_out.setdefault(reason, []).extend(names)
        for uri, kind, text in side.faults(what):
            image_id = safe_image_id(stem_path(uri, side.place))
            if listed is None or image_id in asked:
                errors.append(ErrorRow(image_id, stage, kind, text, storage.printable(uri)))
            else:
                left_out["not in the list"].append(uri)
    tables.write_errors(storage.join(place, "errors"), "matching", errors)
    for note in found.notes:
        session.progress.message(note)
    total = len(found.image_ids) + len(errors)
    budget = error_budget(session.config.errors.budget, total)
    if not found.image_ids:
        reasons = "".join(f"\n  {row.image_id}: {row.message}" for row in errors[:10])
        raise CannotRunError(
            f"no mask in {masks.place} has ground truth of its name in {truth.place}: there are "
            f"masks such as {sorted(masks.names)[:3]} and truth such as {sorted(truth.names)[:3]}"
            f"{reasons}"
        )
    if len(errors) > budget:
        session.progress.message(
            f"{len(masks.index)} masks, {len(truth.index)} with ground truth: to score only some "
            "of them, give a list of their ids with --list"
        )
        raise BudgetExceededError(stage, len(errors), budget, errors)
    listing = storage.join(place, "pairs.parquet")
    return found, write_listing(listing, {i: i for i in found.image_ids}), errors, left_out


def _show(summary: Summary, place: str) -> None:
    """Print the class table, and keep everything as JSON."""
    details: dict[str, Any] = summary.details
    metrics = {k: v if math.isfinite(v) else None for k, v in summary.metrics.items()}
    total = max(sum(details["truth_pixels"].values()), 1)
    width = max(len(name) for name in details["class_iou"])
    print(f"{'class':{width}}   IoU %  truth %")
    for name, value in details["class_iou"].items():
        shown = "-" if value is None else f"{value * 100:.2f}"
        print(f"{name:{width}}  {shown:>6}  {details['truth_pixels'][name] / total * 100:7.3f}")
    if any(details["truth_pixels"].values()):
        _show_means(summary.metrics, details)
    else:
        print("no mask could be scored")
        metrics = dict.fromkeys(metrics)
    if details["note"]:
        print(details["note"])
    uri = storage.join(place, "scores.json")
    keys = ("scored", "error_rows", "readings", "note", "excluded", "class_iou")
    content = metrics | {key: details[key] for key in (*keys, "truth_pixels", "mask_pixels")}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    storage.write_bytes(uri, text.encode())
    print(uri, flush=True)


def _show_means(metrics: Mapping[str, float], details: Mapping[str, Any]) -> None:
    with_truth = len(details["class_iou"]) - len(details["excluded"])
    print(
        f"mIoU {metrics['mean_iou'] * 100:.2f} % over the {with_truth} classes that have truth, "
        f"pixel accuracy {metrics['pixel_accuracy'] * 100:.2f} %, {details['scored']} images"
    )
    if metrics["mean_iou_predicted"] != metrics["mean_iou"]:
        print(
            f"if classes without truth that the masks hold count as 0: mIoU "
            f"{metrics['mean_iou_predicted'] * 100:.2f} %"
        )
    if metrics["left_open"]:
        print(
            f"the masks leave {metrics['left_open'] * 100:.2f} % of the pixels without a class: "
            "they count as wrong"
        )
