"""What every importer does with every photograph: check it, and lose none of them.

An image becomes a manifest row or an error row, and any other file is left out with its reason:
`ImportReport.accounting` is the sum.
"""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ParamSpec

import pyarrow as pa

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.accounting import Accounting, account
from pmm_ray.runtime.core.errors import (
    CannotRunError,
    ErrorKind,
    ErrorRow,
    RowError,
    full_disk,
)
from pmm_ray.runtime.core.manifest import (
    FILE_NAME,
    ExifRule,
    Manifest,
    ManifestRow,
    check_labels,
    write_manifest,
)
from pmm_ray.runtime.core.store_faults import store_failure
from pmm_ray.runtime.rows.images import MAX_PIXELS, read_image_size, read_mask_size

STAGE = "import"


@dataclass(frozen=True)
class ImportReport:
    """What an importer made, and what it understood.

    `rows` images are in `manifest`, `errors` are those that are not, and `counts` are worth
    printing: images of each split, unlabelled images, differences between label sources.
    """

    manifest: Manifest
    rows: int
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
    def total(self) -> int:
        """Images that came in."""
        return self.rows + len(self.errors)


_P = ParamSpec("_P")


def reads_source(
    function: Callable[_P, ImportReport],
) -> Callable[_P, ImportReport]:
    """Turns whatever a user's file makes an importer raise into a sentence, for every command.

    Its first argument is the place that the sentence names.
    """

    @functools.wraps(function)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> ImportReport:
        try:
            return function(*args, **kwargs)
        # numbers out of bounds, text that is none, JSON nested without end: all of the data's
        except (ValueError, OverflowError, RecursionError, csv.Error, pa.ArrowException) as error:
            raise CannotRunError(f"{args[0] if args else 'data'}: {error}") from error
        except OSError as error:
            if full_disk(error) or store_failure(error):
                raise  # not the data's fault, and said by the command
            place = error.filename or (args[0] if args else "data")
            raise CannotRunError(f"{place} cannot be read: {error}") from error

    return guarded


@dataclass
class Importer:
    """Collects the rows and error rows of one import.

    Args:
        out: folder that gets `manifest.parquet` and `errors/part-import.parquet`.
        source: the importer's name.
        exif: the manifest's EXIF rule.
        max_pixels: a photograph that declares more becomes an error row.
    """

    out: str
    label_space: LabelSpace
    source: str
    exif: ExifRule
    max_pixels: int = MAX_PIXELS
    labels_from: str = ""
    background: str = ""
    rows: dict[str, ManifestRow] = field(default_factory=dict)
    errors: list[ErrorRow] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(
        self,
        image_id: str,
        uri: str,
        split: str,
        labels: Callable[[], Iterable[int]],
        ground_truth_uri: str | None = None,
        *,
        stated_size: tuple[int, int] | None = None,
    ) -> None:
        """One photograph: a manifest row if all of it is sound, else an error row.

        Args:
            image_id: as found, perhaps not allowed or already taken.
            uri: absolute uri of the photograph.
            split: its split.
            labels: gives the contiguous ids in any order; its ValueError is a `label` error.
            ground_truth_uri: absolute uri of its mask, if it has one.
            stated_size: (height, width) that an annotation file says, px, (0, 0) if it states
                none; another size is a
                `label` error. Its mask is yet to be drawn, and not opened.
        """
        try:
            row = self._checked(image_id, uri, split, labels, ground_truth_uri, stated_size)
        except RowError as error:
            self.fail(image_id, error.kind, error.message, error.uri or uri)
        except ValueError as error:
            self.fail(image_id, "label", str(error), uri)
        except OSError as error:
            self.fail(image_id, "missing", f"its labels cannot be read: {error}", uri)
        else:
            self.rows[image_id] = row

    def add_known(
        self, row: ManifestRow, labels: Callable[[], Iterable[int]], *, missing: str = ""
    ) -> bool:
        """One photograph of which all is known without opening it; whether it became a row.

        Args:
            row: as it will stand, its `labels` left empty.
            labels: as for `add`.
            missing: why the file cannot be there, if it cannot.
        """
        try:
            tables.check_image_id(row.image_id)
            if row.image_id in self.rows:
                raise ValueError("the image id occurs twice; the first one stays")
            if missing:
                raise RowError("missing", missing, row.uri)
            if row.height <= 0 or row.width <= 0:
                raise ValueError(f"a size of {row.width} x {row.height} pixels")
            if row.height * row.width > self.max_pixels:
                raise RowError("too_large", f"{row.width} x {row.height} pixels are stated")
            found = check_labels(sorted(set(labels())), self.label_space)
        except RowError as error:
            self.fail(row.image_id, error.kind, error.message, error.uri or row.uri)
        except ValueError as error:
            self.fail(row.image_id, "label", str(error), row.uri)
        else:
            self.rows[row.image_id] = replace(row, labels=found)
            return True
        return False

    def fail(self, image_id: str, kind: ErrorKind, message: str, uri: str = "") -> None:
        """One photograph that cannot be used."""
        image_id, message, uri = map(storage.printable, (image_id, message, uri))
        self.errors.append(ErrorRow(image_id, STAGE, kind, message, uri))

    def leave_out(self, reason: str, name: str) -> None:
        """One file that is no photograph, or that nobody asked for."""
        self.left_out.setdefault(reason, []).append(name)

    def finish(
        self,
        counts: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
        *,
        found: int | None = None,
    ) -> ImportReport:
        """Write the errors table and the manifest.

        Args:
            counts: worth printing.
            metadata: of the manifest.
            found: everything that was met, counted where it was listed; default: what was added.

        Raises:
            CannotRunError: not one image is sound; the first reasons are named.
        """
        out = storage.absolute(self.out)
        tables.write_errors(storage.join(out, "errors"), STAGE, self.errors)
        known = len(self.rows) + len(self.errors) + sum(map(len, self.left_out.values()))
        accounting = account(
            "images",
            found=known if found is None else found,
            made=len(self.rows),
            errors=self.errors,
            left_out=self.left_out,
        )
        if not self.rows:
            reasons = "".join(f"\n  {e.image_id}: {e.kind}: {e.message}" for e in self.errors[:10])
            raise CannotRunError(f"{self.source}: no image could be imported{reasons}")
        manifest = write_manifest(
            storage.join(out, FILE_NAME),
            self.rows.values(),
            self.label_space,
            source=self.source,
            exif=self.exif,
            metadata=metadata,
        )
        split_counts = {f"split {name}": count for name, count in manifest.splits.items()}
        split_counts["with ground truth"] = sum(manifest.ground_truth.values())
        split_counts["unlabelled"] = sum(not row.labels for row in self.rows.values())
        return ImportReport(
            manifest,
            len(self.rows),
            tuple(self.errors),
            {**split_counts, **(counts or {})},
            accounting,
            self._classes(),
            self.labels_from,
            self.background,
            tuple(self.notes),
        )

    def _classes(self) -> dict[str, dict[str, int]]:
        cells = Counter((label, row.split) for row in self.rows.values() for label in row.labels)
        found: dict[str, dict[str, int]] = {name: {} for name in self.label_space.names[1:]}
        for (label, split), count in sorted(cells.items()):
            found[self.label_space.names[label]][split] = count
        return found

    def _checked(
        self,
        image_id: str,
        uri: str,
        split: str,
        labels: Callable[[], Iterable[int]],
        ground_truth_uri: str | None,
        stated_size: tuple[int, int] | None,
    ) -> ManifestRow:
        tables.check_image_id(image_id)
        if image_id in self.rows:
            raise ValueError(f"the image id occurs twice; the first is {self.rows[image_id].uri}")
        size = read_image_size(uri, apply_exif=self.exif == "apply", max_pixels=self.max_pixels)
        if stated_size is not None and stated_size not in (size, (0, 0)):
            raise ValueError(
                f"the annotations are for {stated_size[1]} x {stated_size[0]} pixels, the "
                f"photograph has {size[1]} x {size[0]}"
            )
        if ground_truth_uri is not None and stated_size is None:
            mask_size = read_mask_size(ground_truth_uri)
            if mask_size != size:
                raise ValueError(
                    f"the mask is {mask_size[1]} x {mask_size[0]} pixels, the photograph "
                    f"{size[1]} x {size[0]}: {ground_truth_uri}"
                )
        return ManifestRow(
            image_id=image_id,
            uri=uri,
            labels=check_labels(sorted(set(labels())), self.label_space),
            height=size[0],
            width=size[1],
            split=split,
            ground_truth_uri=ground_truth_uri,
        )
