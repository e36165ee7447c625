"""`pmm refine`: masks from other programs' scores, or CAMs, by a joint CRF; scored on the way."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmm_ray.commands import command
from pmm_ray.commands.masks import mask_step, masks_folder
from pmm_ray.commands.refine_inputs import read_maps, read_scores
from pmm_ray.config import RunConfig, load_recipe, refuse_unread
from pmm_ray.pipeline.run import Run, open_command
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.accounting import close
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.stage import Stage
from pmm_ray.runtime.core.tables import part_uri, read_errors
from pmm_ray.runtime.rows.masks import crf_parameters
from pmm_ray.sources.cams.said import Said

if TYPE_CHECKING:
    from latticecrf.presets import Setting

SCORES = "scores.json"
_READS = ("predict.crf", "predict.backend", "data.max_pixels", "errors", "runtime")


@command
def refine_folder(
    progress: Progress,
    scores: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    preset: str | None = None,
    ground_truth: str | Path | None = None,
    compare: bool = False,
    confidence: float | None = None,
    strengths: str | None = None,
    truth_ids: str = "auto",
    said: Said | None = None,
    settings: Sequence[str] = (),
    address: str = "auto",
) -> None:
    """Refine scores; writes `OUT/masks/ID.png`, the masks table, and the scores if there is truth.

    Args:
        scores: folder of scores with a background (see `sources/cams/score_files.py`), or of CAMs
            where the preset makes a background of its own.
        images: folder of photographs; those without scores are left aside.
        out: output folder; the same command goes on where it was interrupted.
        preset: name of a `Preset`, in any case, with `-`; None: the CRF of `predict.crf`.
        ground_truth: masks of some of the photographs.
        compare: also say what the scores' own masks score, before the CRF.
        confidence: pixels whose best posterior is below it are ignored, in place of the preset's.
        strengths: exponents or thresholds in place of the preset's, `0.3,0.05`.
        truth_ids: what the truth's values are: `contiguous` ids, the `dataset`'s own, or `auto`.
        said: of the files.
        settings: `predict.crf.key=value` and other overrides of the defaults.
        address: see `run_recipe`.
    """
    from pmm_ray.sources.cams.cam_files import find_cams
    from pmm_ray.sources.masks.mask_pairs import find_truth
    from pmm_ray.stages import refine_scores

    place, said = storage.absolute(str(out)), said or Said()
    if compare and ground_truth is None:
        raise CannotRunError("--compare needs --ground-truth")
    config = load_recipe(None, settings)
    refuse_unread(settings, "pmm refine", _READS)
    setting = setting_of(preset, config, confidence, strengths)
    if ground_truth is not None:
        _refuse_truth_in(storage.join(place, "masks"), str(ground_truth))
    masks = masks_folder(place)

    def make(run: Run) -> Stage:
        backend = config.predict.backend
        return refine_scores.stage(
            setting, run.data, seeds, backend=backend, truth=truth, png_folder=masks
        )

    told = (
        storage.join(place, SCORES),
        part_uri(storage.join(place, "errors"), refine_scores.TRUTH),
    )
    steps = [mask_step(refine_scores.STAGE, masks, make, told)]
    with open_command(place, config, steps, progress, address) as run:
        listing = storage.join(place, "score-files.parquet")
        files = find_cams(
            str(scores),
            listing,
            trust_pickle=said.trust_pickle,
            layout=said.layout or "",
            what="score file",
        )
        read = read_scores if setting.background == "given" else read_maps
        report, seeds = read(run, files, str(images), said)
        truth = None
        if ground_truth is not None:
            truth = find_truth(str(ground_truth), run.data.images, place)
            run.say(
                f"{refine_scores.STAGE}: pixel labels used ({truth.count} of "
                f"{len(seeds.index)} images have them in {truth.place})"
            )
            for note in truth.notes:
                run.say(f"ground truth: {note}")
        run.follow()
        folder = run[refine_scores.STAGE]
        more = ""
        if truth is not None:
            reading = "contiguous" if truth.is_table else truth_ids
            space = run.data.manifest.label_space
            found = refine_scores.scores_of_table(place, folder, space, truth, reading)
            more = show_scores(*found, place, compare)
        total = report.accounting.after(read_errors(folder.errors_uri))
        close(total, f"{masks}, {place}/errors{more}", run.say)


def _refuse_truth_in(masks: str, ground_truth: str) -> None:
    """Masks of other settings are deleted there: the truth must not be among them."""
    if storage.is_below(storage.absolute(ground_truth), masks):
        raise CannotRunError(
            f"--ground-truth {ground_truth} is in {masks}, where the masks are written: choose "
            "another --out"
        )


def setting_of(
    preset: str | None,
    config: RunConfig,
    confidence: float | None,
    strengths: str | None,
) -> Setting:
    """The CRF of a command.

    Raises:
        CannotRunError: no such preset, or numbers that do not go with it.
    """
    from latticecrf.presets import Preset, Setting

    presets = {one.name.lower().replace("_", "-"): one.value for one in Preset}
    if preset is None:
        setting = Setting("predict.crf", crf_parameters(config.predict.crf))
    else:
        name = preset.lower().replace("_", "-")
        if name not in presets:
            raise CannotRunError(f"--preset {preset}: choose one of {', '.join(presets)}")
        if "crf" in config.predict.model_fields_set:
            raise CannotRunError("--preset and --set predict.crf contradict each other")
        setting = presets[name]
    if confidence is not None:
        if not 0 <= confidence <= 1:
            raise CannotRunError(f"--confidence {confidence:g}: it is within 0..1")
        setting = replace(setting, least_posterior=confidence)
    if strengths is None:
        return setting
    if setting.background == "given":
        raise CannotRunError(
            "--strengths belong to presets that make a background of their own: "
            + ", ".join(name for name, one in presets.items() if one.background != "given")
        )
    return replace(setting, strengths=_strengths(strengths, setting))


def _strengths(said: str, setting: Setting) -> tuple[float, ...]:
    """Raises CannotRunError of strengths that make no background, or a foreground less sure."""
    try:
        numbers = tuple(float(word) for word in said.split(","))
    except ValueError:
        numbers = ()
    if not 1 <= len(numbers) <= 2:
        raise CannotRunError(f"--strengths {said}: give a number A, or two: A,B")
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise CannotRunError(f"--strengths {said}: each is a finite number above 0")
    exponents = setting.background == "exponent"
    if not exponents and max(numbers) >= 1:
        raise CannotRunError(f"--strengths {said}: these are thresholds of maps, below 1")
    if list(numbers) != sorted(numbers, reverse=not exponents):
        order = "the lower exponent" if exponents else "the higher threshold"
        raise CannotRunError(
            f"--strengths {said}: {order} comes first, for the foreground that is sure"
        )
    return numbers


def show_scores(
    metrics: dict[str, float], details: dict[str, Any], place: str, compare: bool
) -> str:
    """Print the scores, and keep them as `scores.json`.

    Returns:
        What the last line of the command adds: how many images have truth that is of no use.
    """
    unusable = details["truth_errors"]
    more = f"; {unusable} images have ground truth that cannot be used" if unusable else ""
    truth = details["after"]["truth_pixels"] if "after" in details else {}
    named = [name for name, pixels in truth.items() if pixels]
    if not named:
        return f"{more}; no image could be scored"
    moments = ("before", "after") if compare else ("after",)
    width = max(len(name) for name in named)
    print(f"{'class':{width}}" + "".join(f"  {when:>6}" for when in moments) + "   IoU %")
    for name in named:
        values = (details[when]["class_iou"][name] for when in moments)
        print(f"{name:{width}}" + "".join(f"  {(value or 0) * 100:6.2f}" for value in values))
    for when in moments:
        print(
            f"mIoU {when} the CRF: {metrics[f'{when}_mean_iou'] * 100:.2f} % over the "
            f"{len(named)} classes that have truth, {details['scored']} images"
        )
    if metrics["after_left_open"]:
        open_ = metrics["after_left_open"] * 100
        print(f"the masks leave {open_:.2f} % of the pixels without a class: they count as wrong")
    if details["note"]:
        print(details["note"])
    uri = storage.join(place, SCORES)
    content = metrics | {
        key: details[key] for key in ("scored", "truth_errors", "readings", "note", *moments)
    }
    storage.write_bytes(uri, json.dumps(content, indent=1, ensure_ascii=False).encode())
    print(uri)
    return more
