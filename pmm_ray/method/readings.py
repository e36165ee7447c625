"""What the values in foreign masks mean, decided from all of them at once, and what they score.

Files hold contiguous ids (COCO: 0..80) or the data set's own (0..90), and do not say which.
"""

# C: classes with the background; one more column counts pixels that a mask leaves open.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from pmm_ray.labels import IGNORE_16BIT, LabelSpace
from pmm_ray.method.confusion import Confusion, iou, mean_iou

Ints = npt.NDArray[np.int64]

READINGS = ("contiguous", "dataset")
SIDES = ("truth", "mask")
# another reading must score less than this part of the best one, or nobody can tell them apart
_CLEARLY_LESS = 0.8
# the part of the truth that is not labelled is said from here on; borders of VOC are 6 %
_MUCH = 0.25
# both sides leave this part of all pixels open only if 255 is the background
_BULK = 0.5


@dataclass(frozen=True)
class Counts:
    """Pixel counts of many images: one entry per image and pair of values, as in `count_pairs`.

    Args:
        image: number of the image, int64 [n].
        truth: True value, int64 [n], 0..65535.
        mask: Value of the mask, int64 [n], 0..65535.
        pixels: How many pixels of the image have both, int64 [n].
    """

    image: Ints
    truth: Ints
    mask: Ints
    pixels: Ints

    def side(self, name: str) -> Ints:
        """The values of `truth` or `mask`."""
        return self.truth if name == "truth" else self.mask


def reading_table(space: LabelSpace, reading: str) -> Ints:
    """Contiguous id by value, int64 [65536]; C for the ignore value, -1 for values of no meaning.

    Args:
        reading: `contiguous`: a value is a contiguous id; `dataset`: the data set's own id.
    """
    out = np.full(IGNORE_16BIT + 1, -1, np.int64)
    ids = range(space.num_classes) if reading == "contiguous" else space.dataset_ids
    out[list(ids)] = np.arange(space.num_classes)
    out[space.ignore] = space.num_classes
    return out


def _candidates(counts: Counts, side: str, space: LabelSpace, wanted: str) -> list[str]:
    """The readings that leave the fewest images with values of no meaning."""
    if wanted != "auto":
        return [wanted]
    if space.dataset_ids == tuple(range(space.num_classes)):
        return [READINGS[0]]
    faulty = {}
    for reading in READINGS:
        unknown = reading_table(space, reading)[counts.side(side)] < 0
        faulty[reading] = len(np.unique(counts.image[unknown]))
    return [reading for reading in READINGS if faulty[reading] == min(faulty.values())]


def _check_marks(counts: Counts, space: LabelSpace, foreign: Sequence[str]) -> None:
    """Raises ValueError of 255 for a class or the background: it means that nothing is known."""
    for side in foreign:
        what = "the ground truth" if side == "truth" else "every mask"
        values = set(np.unique(counts.side(side)).tolist())
        if values and space.ignore in values and values <= {0, space.ignore}:
            raise ValueError(
                f"{what} holds only 0 and {space.ignore}, and {space.ignore} means 'not "
                "labelled': save the class as 1 (its id)"
            )
    both = (counts.truth == space.ignore) & (counts.mask == space.ignore)
    share = counts.pixels[both].sum() / max(counts.pixels.sum(), 1)
    if set(foreign) == set(SIDES) and share > _BULK:
        raise ValueError(
            f"{share * 100:.0f} % of the pixels are {space.ignore} in the ground truth and in the "
            f"masks, and {space.ignore} means 'not labelled': if it is the background (as "
            "mmsegmentation's reduce_zero_label makes it), save the background as 0 and the "
            "classes from 1 in both"
        )


def _not_labelled(counts: Counts, space: LabelSpace) -> str:
    """What to say about truth of which much is not labelled; empty where little is."""
    share = counts.pixels[counts.truth == space.ignore].sum() / max(counts.pixels.sum(), 1)
    if share <= _MUCH:
        return ""
    return (
        f"{share * 100:.1f} % of the ground truth's pixels are {space.ignore}, 'not labelled', and "
        f"do not count: if {space.ignore} is the background there, the scores are of other classes"
    )


def add_up(
    counts: Counts, space: LabelSpace, readings: Sequence[str]
) -> tuple[Confusion, dict[int, str]]:
    """The confusion matrix of images whose values are read in given ways.

    Args:
        counts: Of all images.
        readings: Of truth and masks, each of `READINGS`.

    Returns:
        int64 [C + 1, C + 1]; and by their numbers the images that are left out because of values
        of no meaning, with the reason.
    """
    faults: dict[int, str] = {}
    mapped = []
    for side, reading in zip(SIDES, readings, strict=True):
        values = counts.side(side)
        ids = reading_table(space, reading)[values]
        what = "ground truth" if side == "truth" else "mask"
        for image in np.unique(counts.image[ids < 0]).tolist():
            held = np.unique(values[(ids < 0) & (counts.image == image)])[:10].tolist()
            faults.setdefault(image, f"the {what} holds {held}, which are no {reading} ids")
        mapped.append(ids)
    true, predicted = mapped
    size = space.num_classes + 1
    keep = (true != space.num_classes) & ~np.isin(counts.image, list(faults))
    total = np.zeros(size * size, np.int64)
    np.add.at(total, true[keep] * size + predicted[keep], counts.pixels[keep])
    return total.reshape(size, size), faults


def choose_readings(
    counts: Counts, space: LabelSpace, wanted: Sequence[str], foreign: Sequence[str] = SIDES
) -> tuple[tuple[str, ...], str]:
    """How the values of truth and masks are to be read, and what to say about the choice.

    Args:
        counts: Of all images.
        wanted: For truth and masks: `auto`, or one of `READINGS`.
        foreign: The sides that others made: ours may hold nothing but 0 and the ignore value.

    Returns:
        The readings of truth and masks; a remark on the choice, if there was one, and on truth of
        which much is not labelled.

    Raises:
        ValueError: the values fit several readings, which score alike; a foreign side holds
            nothing but 0 and the ignore value; or both hold that value at most pixels.
    """
    _check_marks(counts, space, foreign)
    not_labelled = _not_labelled(counts, space)
    choices = [_candidates(counts, side, space, of) for side, of in zip(SIDES, wanted, strict=True)]
    combinations = list(product(*choices))
    if len(combinations) == 1:
        return combinations[0], not_labelled
    # where both sides fit both, reading them alike scores the same twice: only names would differ
    scored = sorted(
        ((np.nan_to_num(mean_iou(add_up(counts, space, c)[0])[0]), c) for c in combinations),
        key=lambda pair: -pair[0],
    )
    best, chosen = scored[0]
    alike = chosen[0] == chosen[1]
    rivals = [score for score, other in scored[1:] if not (alike and other[0] == other[1])]
    if best <= 0 or any(score > _CLEARLY_LESS * best for score in rivals):
        listed = "; ".join(
            f"truth {truth}, masks {mask}: {score * 100:.1f} %" for score, (truth, mask) in scored
        )
        raise ValueError(
            "the values in the files fit contiguous ids and the data set's own, and the scores do "
            f"not tell them apart ({listed}). Say what they are: --truth-ids and --mask-ids, each "
            f"{' or '.join(READINGS)}"
        )
    runner_up = max(rivals, default=0.0)
    choice = (
        f"the values fit several layouts; read as truth {chosen[0]}, masks {chosen[1]} "
        f"({best * 100:.1f} % mIoU, otherwise {runner_up * 100:.1f} %)"
    )
    return chosen, "\n".join(filter(None, (choice, not_labelled)))


def describe(total: Confusion, space: LabelSpace) -> tuple[dict[str, float], dict[str, Any]]:
    """(metrics, details) of a confusion matrix with a column for pixels that masks leave open.

    `mean_iou` is over the classes that have truth; `mean_iou_predicted` also counts, with 0, those
    that have none and are predicted, as torchmetrics and mmsegmentation do.
    """
    classes = slice(0, space.num_classes)
    iou_C, true_C = iou(total)[classes], total.sum(axis=1)[classes]
    predicted_C = total.sum(axis=0)[classes]
    pixels = int(total.sum())
    mean, _ = mean_iou(total)
    seen = (true_C > 0) | (predicted_C > 0)
    metrics = {
        "mean_iou": round(mean, 6),
        "mean_iou_predicted": round(float(np.nan_to_num(iou_C).sum() / max(seen.sum(), 1)), 6),
        "pixel_accuracy": round(float(np.trace(total) / max(pixels, 1)), 6),
        "left_open": round(float(total[:, space.num_classes].sum() / max(pixels, 1)), 6),
    }
    details = {
        "class_iou": {
            name: None if np.isnan(value) else round(float(value), 6)
            for name, value in zip(space.names, iou_C, strict=True)
        },
        "truth_pixels": dict(zip(space.names, true_C.tolist(), strict=True)),
        "mask_pixels": dict(zip(space.names, predicted_C.tolist(), strict=True)),
        "excluded": [space.names[c] for c in np.flatnonzero(true_C == 0)],
    }
    return metrics, details
