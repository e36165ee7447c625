"""The cyclic rounds of a run: what replaced its masks, and what that changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pmm_ray.report.run_data import RunData
from pmm_ray.runtime.core.stage import Summary

_MASKS_OF_ROUND_0 = "make_masks"


@dataclass(frozen=True)
class Round:
    """One round of the run's own segmenter. Shares and scores are 0..1; None: not measured."""

    number: int
    masks_stage: str
    """Whose masks of the training split the segmenter learns from."""
    agreement: float | None
    """Share of pixels that keep the class that the masks before gave them."""
    between: float | None
    """mIoU between these masks and those before."""
    foreground: float | None
    """Share of foreground pixels."""
    masks_iou: float | None
    """mIoU of the masks against the training split's truth."""
    segmenter_iou: float | None
    """mIoU of the segmenter against the held-out split's truth."""
    trained: bool
    churn: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Class name -> before, after, lost, gained, images_lost, images_gained."""


@dataclass(frozen=True)
class Cycles:
    """All rounds, and why there are no more."""

    rounds: tuple[Round, ...]
    ended: str
    """Why the cycle ended before the recipe's number of rounds; empty: it did not."""

    @cached_property
    def classes(self) -> list[str]:
        """Classes in any round's churn, in the order of the data set."""
        return list(dict.fromkeys(name for r in self.rounds for name in r.churn))

    @property
    def compared(self) -> list[Round]:
        return [r for r in self.rounds if r.churn]


def cycles_of(run: RunData) -> Cycles | None:
    """The rounds of a run; None where no masks were replaced or could have been."""
    done = {summary.stage: summary for summary in run.summaries}
    numbers = [n for n in range(1, len(done) + 1) if f"compare_masks-r{n}" in done]
    if not numbers and "choose_masks-r1" not in done:
        return None
    first = done[f"compare_masks-r{numbers[0]}"].metrics if numbers else {}
    rounds = [_round(run, done, 0, {"foreground_after": first.get("foreground_before")}, {})]
    for number in numbers:
        compared = done[f"compare_masks-r{number}"]
        churn = compared.details.get("churn", {})
        rounds.append(_round(run, done, number, compared.metrics, churn))
    return Cycles(tuple(rounds), _why_ended(run, done, rounds[-1]))


def _round(
    run: RunData,
    done: Mapping[str, Summary],
    number: int,
    compared: Mapping[str, float | None],
    churn: Mapping[str, Mapping[str, float]],
) -> Round:
    stage = f"predict_masks-r{number}" if number else _MASKS_OF_ROUND_0
    held_out = run.held_out_split
    train = str(run.setting("data", "train_split"))
    return Round(
        number=number,
        masks_stage=stage,
        agreement=compared.get("agreement"),
        between=compared.get("mean_iou"),
        foreground=compared.get("foreground_after"),
        masks_iou=run.scores_of(stage).get(train),
        segmenter_iou=run.scores_of(f"predict_masks-r{number}-{held_out}").get(held_out),
        trained=f"train_segmenter-r{number}" in done,
        churn=churn,
    )


def _why_ended(run: RunData, done: Mapping[str, Summary], last: Round) -> str:
    limit = run.setting("cycles", "stop_when")
    if not last.trained and limit is not None and (last.agreement or 0.0) > limit:
        return (
            f"Round {last.number} was not trained: its masks agree with those before by more than "
            f"cycles.stop_when {limit}."
        )
    choice = done.get(f"choose_masks-r{last.number + 1}")
    if choice is not None and not choice.details.get("update", True):
        return (
            f"The masks of round {last.number} were not replaced: on {choice.images} held-out "
            f"images the segmenter that learnt from them scores "
            f"{choice.metrics['segmenter'] * 100:.1f} and they themselves "
            f"{choice.metrics['supervision'] * 100:.1f} mIoU % (cycles.update: if_better)."
        )
    return ""
