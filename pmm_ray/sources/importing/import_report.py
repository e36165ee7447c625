"""What an import says of itself, and how it refuses a source."""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec

import pyarrow as pa

from pmm_ray.runtime.core.accounting import Accounting
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.store_faults import passing


@dataclass(frozen=True)
class ImportReport:
    """What an importer made, and what it understood.

    `errors` are images that are not in `manifest`, and `counts` are worth printing: images of each
    split, unlabelled images, differences between label sources.
    """

    manifest: Manifest
    errors: tuple[ErrorRow, ...]
    counts: dict[str, int]
    accounting: Accounting
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Images of each class by split; every class is there."""
    labels_from: str = ""
    """Where the image-level labels come from, for people."""
    background: str = ""
    """How the source spells the background, where it lists it as a class."""
    notes: tuple[str, ...] = ()
    """What else was understood or given up: joins that missed, names found by another rule."""
    asked: tuple[str, ...] = ()
    """The splits that stages will use."""

    @property
    def rows(self) -> int:
        """Images in the manifest."""
        return self.manifest.num_rows

    @property
    def total(self) -> int:
        """Images that came in."""
        return self.rows + len(self.errors)


def counted(
    manifest: Manifest, rows: Sequence[tuple[str, Sequence[int]]]
) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """`ImportReport.counts` and `classes` of what is in a manifest.

    Args:
        rows: (split, labels) of its images.
    """
    counts = {f"split {name}": count for name, count in manifest.splits.items()}
    counts["with ground truth"] = sum(manifest.ground_truth.values())
    counts["unlabelled"] = sum(not labels for _, labels in rows)
    names = manifest.label_space.names
    classes: dict[str, dict[str, int]] = {name: {} for name in names[1:]}
    cells = Counter((label, split) for split, labels in rows for label in labels)
    for (label, split), count in sorted(cells.items()):
        classes[names[label]][split] = count
    return counts, classes


_P = ParamSpec("_P")


def reads_source(function: Callable[_P, ImportReport]) -> Callable[_P, ImportReport]:
    """Turns whatever a user's file makes an importer raise into a sentence, for every command.

    Its first argument is the place that the sentence names.
    """

    @functools.wraps(function)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> ImportReport:
        place = args[0]
        try:
            return function(*args, **kwargs)
        # numbers out of bounds, text that is none, JSON nested without end: all of the data's
        except (ValueError, OverflowError, RecursionError, csv.Error, pa.ArrowException) as error:
            raise CannotRunError(f"{place}: {error}") from error
        except OSError as error:
            if passing(error):
                raise  # not the data's fault, and said by the command
            raise CannotRunError(f"{error.filename or place} cannot be read: {error}") from error

    return guarded
