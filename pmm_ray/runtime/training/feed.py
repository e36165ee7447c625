"""The batches of a worker: what of them cannot be used, and how long the worker waited for them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.runtime.training.loader import Batch

# a listing takes time in proportion to the rows: beyond so many it is made once in so many seconds
_FEW = 100
_LIST_SECONDS = 10.0


class Feed:
    """One batch after another, until there is a problem.

    Args:
        reporter: hears how many images cannot be used.
    """

    def __init__(self, job: TrainingJob, reporter: Any) -> None:
        self._job = job
        self._reporter = reporter
        self._batches: Iterator[Batch] = iter(())
        self._bad: set[str] = set()
        self._count = 0  # error rows of all workers at the last listing, and our own since
        self._listed = -math.inf  # when
        self._uncounted = False
        self.problem: CannotRunError | None = None
        """Why no more batches come."""
        self.waited = 0.0
        """Seconds spent waiting for them."""

    def begin(self, batches: Iterator[Batch]) -> None:
        self._batches = batches

    def next(self) -> Batch | None:
        """The next batch, its errors noted; None where there is a problem."""
        if self.problem is not None:
            return None
        asked = time.monotonic()
        try:
            batch = next(self._batches)
        except CannotRunError as error:
            self.problem = error
            return None
        finally:
            self.waited += time.monotonic() - asked
        for row in batch.errors:
            if row.image_id not in self._bad:
                self._record(row)
        if self._uncounted and self._due():
            self._look()
        return batch

    def _record(self, row: ErrorRow) -> None:
        """Write an error row under a name made from its image: found twice, it is there once."""
        self._bad.add(row.image_id)
        tables.write_errors(self._job.errors_uri, tables.chunk_name([row.image_id]), [row])
        self._count += 1
        self._uncounted = True

    def _due(self) -> bool:
        few = self._count <= _FEW or self._count > self._job.error_budget
        return few or time.monotonic() - self._listed >= _LIST_SECONDS

    def _look(self) -> None:
        """Count the error rows of all workers."""
        self._count = len(storage.list_files(self._job.errors_uri, ".parquet"))
        self._listed, self._uncounted = time.monotonic(), False
        self._reporter.failed.remote(self._count)
        if self._count > self._job.error_budget:
            self.problem = CannotRunError(f"{self._job.stage}: {self._count} images cannot be used")
