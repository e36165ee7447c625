"""Where training workers tell the driver how far they are: a Ray actor without a CPU."""

from __future__ import annotations

import math


class Reporter:
    """Holds the latest position of a training."""

    def __init__(self) -> None:
        self._step = 0
        self._loss = math.nan
        self._errors = 0

    def update(self, step: int, loss: float) -> None:
        self._step, self._loss = step, loss

    def failed(self, errors: int) -> None:
        """Images that could not be used so far, over all workers."""
        self._errors = max(self._errors, errors)

    def state(self) -> tuple[int, float, int]:
        """(steps done, loss of the last one, error rows)."""
        return self._step, self._loss, self._errors
