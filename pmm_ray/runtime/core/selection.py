"""Which stages of a plan may run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pmm_ray.runtime.core.errors import CannotRunError


@dataclass(frozen=True)
class Selection:
    """Which stages of the plan may run: from `first` to `last`, or those called `only`.

    Attributes:
        plan: names of the stages, in order.
        first, last, only: names, with or without a round or subject.
        fresh: compute the selected stages anew.
        retry_errors: run images with error rows again; a finished training or import that has some
            is done anew.
        measures: those of the plan that measure what the stage before them made, and go with it.

    Raises:
        CannotRunError: the plan has no such stage, or none between `first` and `last`.
    """

    plan: tuple[str, ...]
    first: str | None = None
    last: str | None = None
    only: str | None = None
    fresh: bool = False
    retry_errors: bool = False
    measures: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in (self.first, self.last, self.only):
            if name is not None and not self._matches(name):
                raise CannotRunError(
                    f"no stage is called {name!r}; this recipe has {', '.join(self.plan)}"
                )
        if not self.positions:
            raise CannotRunError(
                f"--from {self.first} comes after --until {self.last}: there is no stage between"
            )

    def _matches(self, name: str) -> list[int]:
        return [i for i, stage in enumerate(self.plan) if name in (stage, base_name(stage))]

    @cached_property
    def positions(self) -> frozenset[int]:
        """Positions in the plan that may run."""
        if self.only:
            chosen = set(self._matches(self.only))
        else:
            start = self._matches(self.first)[0] if self.first else 0
            stop = self._matches(self.last)[-1] if self.last else len(self.plan) - 1
            chosen = set(range(start, stop + 1))
        for position, stage in enumerate(self.plan):
            if stage in self.measures and position - 1 in chosen:
                chosen.add(position)
        return frozenset(chosen)

    @property
    def whole(self) -> bool:
        """Whether every stage of the plan may run."""
        return len(self.positions) == len(self.plan)

    def has(self, stage: str) -> bool:
        """Whether a stage of the plan may run."""
        return self.plan.index(stage) in self.positions

    def last_is(self, stage: str) -> bool:
        """Whether a stage of the plan is the last one that may run."""
        return self.plan.index(stage) == max(self.positions)

    def ended(self, stage: str) -> bool:
        """Whether a stage of the plan comes after all that may run."""
        return self.plan.index(stage) > max(self.positions)


def base_name(stage: str) -> str:
    """`predict_masks-r1-val` -> `predict_masks`."""
    return stage.split("-", 1)[0]


def section_name(training: str) -> str:
    """`train_segmenter-r1` -> `segmenter`: a training's section of the recipe."""
    return base_name(training).removeprefix("train_")
