"""The batches of a worker: what of them cannot be used, and how long the worker waited for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.runtime.training.loader import Batch


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
        return batch

    def _record(self, row: ErrorRow) -> None:
        """Write an error row under a name made from its image: found twice, it is there once."""
        self._bad.add(row.image_id)
        folder = self._job.errors_uri
        tables.write_errors(folder, tables.chunk_name([row.image_id]), [row])
        count = len(storage.list_files(folder, ".parquet"))
        self._reporter.failed.remote(count)
        if count > self._job.error_budget:
            self.problem = CannotRunError(f"{self._job.stage}: {count} images cannot be used")
