"""What every importer does with every photograph: check it, and lose none of them.

An image becomes a manifest row or an error row, and any other file is left out with its reason:
`ImportReport.accounting` is the sum.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.accounting import account
from pmm_ray.runtime.core.errors import CannotRunError, ErrorKind, ErrorRow, RowError
from pmm_ray.runtime.core.files import MANIFEST_FILE
from pmm_ray.runtime.core.manifest import ExifRule, ManifestRow, check_labels, write_manifest
from pmm_ray.runtime.core.store_faults import passing
from pmm_ray.runtime.rows.images import MAX_PIXELS, Header, read_header, read_mask_size
from pmm_ray.sources.importing.copies import Copies, find_copies
from pmm_ray.sources.importing.import_report import ImportReport, counted
from pmm_ray.sources.reading.names import grouped

STAGE = "import"
# Photographs of a bucket whose files are opened at once, and that wait for it: it answers late.
_AT_ONCE = 16
_AHEAD = 256
# of copies, read for a note alone: of a bucket, perhaps, and one file after another
_MOST_BYTES = 1 << 30
_Read = tuple[Header, tuple[int, int] | None, list[int]]


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
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _rows: dict[str, ManifestRow] = field(init=False, default_factory=dict)
    _errors: list[ErrorRow] = field(init=False, default_factory=list)
    # by id, of `Header`
    _contents: dict[str, int] = field(init=False, default_factory=dict)
    # with truth whose size does not tell whether it is turned, too
    _unsure_truth: list[str] = field(init=False, default_factory=list)
    _turned: list[str] = field(init=False, default_factory=list)
    _waiting: deque[Callable[[], None]] = field(init=False, default_factory=deque)
    _openers: ThreadPoolExecutor = field(
        init=False, default_factory=partial(ThreadPoolExecutor, _AT_ONCE, "import")
    )

    @property
    def rows(self) -> dict[str, ManifestRow]:
        """The sound photographs by their ids, in the order in which they were added."""
        self._settle(0)
        return self._rows

    @property
    def turned(self) -> list[str]:
        """The uris of the sound photographs that EXIF data turns, whether it is obeyed or not."""
        self._settle(0)
        return self._turned

    @property
    def errors(self) -> list[ErrorRow]:
        """The error rows, in the order in which their photographs were added."""
        self._settle(0)
        return self._errors

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

        Files of a bucket are opened some at once, by threads.

        Args:
            image_id: as found, perhaps not allowed or already taken.
            uri: absolute uri of the photograph.
            split: its split.
            labels: gives the contiguous ids in any order, perhaps in a thread; its ValueError is a
                `label` error.
            ground_truth_uri: absolute uri of its mask, if it has one.
            stated_size: (height, width) that an annotation file says, px, (0, 0) if it states
                none; another size is a `label` error. Its mask is yet to be drawn, and not opened.
        """
        mask_uri = ground_truth_uri if stated_size is None else None
        read: Callable[[], _Read] = partial(self._read, uri, mask_uri, labels)
        if storage.is_remote(uri):
            read = self._openers.submit(read).result
        row = ManifestRow(image_id, uri, (), 0, 0, split, ground_truth_uri)
        self._waiting.append(partial(self._add, row, read, stated_size))
        self._settle(_AHEAD)

    def add_known(
        self, row: ManifestRow, labels: Callable[[], Iterable[int]], *, missing: str
    ) -> bool:
        """One photograph of which all is known without opening it; whether it became a row.

        Args:
            row: as it will stand, its `labels` left empty.
            labels: as for `add`.
            missing: why the file cannot be there, else empty.
        """
        try:
            tables.check_image_id(row.image_id)
            if row.image_id in self.rows:
                raise ValueError("the image id occurs twice; the first one stays")
            found = check_labels(sorted(set(labels())), self.label_space)
            if missing:
                raise RowError("missing", missing, row.uri)
            if row.height <= 0 or row.width <= 0:
                raise ValueError(f"a size of {row.width} x {row.height} pixels")
            if row.height * row.width > self.max_pixels:
                raise RowError("too_large", f"{row.width} x {row.height} pixels are stated")
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
        self._waiting.append(partial(self._fail, image_id, kind, message, uri))
        self._settle(_AHEAD)

    def withdraw(self, image_id: str, kind: ErrorKind, message: str) -> None:
        """One photograph that is sound by itself, and cannot be used beside the others."""
        self.fail(image_id, kind, message, self.rows.pop(image_id).uri)

    def copies(
        self, differ: Callable[[ManifestRow], object], most_bytes: float = math.inf
    ) -> Copies[ManifestRow]:
        """Sound photographs of the same bytes; the arguments are those of `find_copies`."""
        alike = grouped((i for i in self.rows if i in self._contents), self._contents.__getitem__)
        groups = ([self.rows[i] for i in ids] for ids in alike.values() if len(ids) > 1)
        return find_copies(groups, lambda row: row.uri, differ, most_bytes)

    def leave_out(self, reason: str, *names: str) -> None:
        """Files that are no photographs, or that nobody asked for."""
        if names:
            self.left_out.setdefault(reason, []).extend(names)

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
        self._openers.shutdown()
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
        self.notes += [*self._turned_note(), *self._splits_note()]
        manifest = write_manifest(
            storage.join(out, MANIFEST_FILE),
            self.rows.values(),
            self.label_space,
            source=self.source,
            exif=self.exif,
            metadata=metadata,
        )
        there, classes = counted(manifest, [(row.split, row.labels) for row in self.rows.values()])
        return ImportReport(
            manifest,
            tuple(self.errors),
            {**there, **(counts or {})},
            accounting,
            classes,
            self.labels_from,
            self.background,
            tuple(self.notes),
        )

    def _turned_note(self) -> list[str]:
        if not (turned := self._unsure_truth):
            return []
        return [
            f"photographs with ground truth that EXIF data turns: {len(turned)}, such as "
            f"{turned[0]}: sizes do not tell whether the truth is turned, too; it has to fit the "
            "photograph as a viewer shows it"
        ]

    def _splits_note(self) -> list[str]:
        copies = self.copies(lambda row: row.split, _MOST_BYTES)
        if not copies.groups:
            return []
        first, *others = copies.groups[0]
        other = next(row for row in others if row.split != first.split)
        return [
            f"photographs in two splits: {copies.least}{len(copies.groups)}, such as {first.uri} "
            f"({first.split}) and {other.uri} ({other.split}), which are the same: scores count "
            "what was trained on, so keep one of them"
        ]

    def _settle(self, ahead: int) -> None:
        """Make the rows of all photographs but the last few, in their order."""
        try:
            while len(self._waiting) > ahead:
                self._waiting.popleft()()
        except BaseException:
            # a store that fails is tried for a minute, and the process waits for its threads
            self._openers.shutdown(wait=False, cancel_futures=True)
            raise

    def _add(
        self, row: ManifestRow, read: Callable[[], _Read], stated_size: tuple[int, int] | None
    ) -> None:
        try:
            found = self._checked(row, read, stated_size)
        except RowError as error:
            self._fail(row.image_id, error.kind, error.message, error.uri or row.uri)
        except ValueError as error:
            self._fail(row.image_id, "label", str(error), row.uri)
        except OSError as error:
            if passing(error):
                raise  # not the photograph's fault, and said by the command
            text = f"its labels cannot be read: {error}"
            self._fail(row.image_id, "missing", text, row.uri)
        else:
            self._rows[row.image_id] = found

    def _fail(self, image_id: str, kind: ErrorKind, message: str, uri: str) -> None:
        image_id, message, uri = map(storage.printable, (image_id, message, uri))
        self._errors.append(ErrorRow(image_id, STAGE, kind, message, uri))

    def _read(self, uri: str, mask_uri: str | None, labels: Callable[[], Iterable[int]]) -> _Read:
        """The header of a photograph, (height, width) of its mask, px, and the labels."""
        header = read_header(uri, apply_exif=self.exif == "apply", max_pixels=self.max_pixels)
        return header, None if mask_uri is None else read_mask_size(mask_uri), sorted(set(labels()))

    def _checked(
        self, row: ManifestRow, read: Callable[[], _Read], stated_size: tuple[int, int] | None
    ) -> ManifestRow:
        tables.check_image_id(row.image_id)
        if row.image_id in self._rows:
            first = self._rows[row.image_id].uri
            raise ValueError(f"the image id occurs twice; the first is {first}")
        header, mask_size, labels = read()
        size, stored = header.size, header.stored_size
        if stated_size is not None and stated_size not in (size, (0, 0)):
            raise ValueError(
                f"the annotations are for {stated_size[1]} x {stated_size[0]} pixels, the "
                f"photograph has {size[1]} x {size[0]}"
                + (_turned(header) if stated_size == stored else "")
            )
        if mask_size not in (size, None):
            raise ValueError(
                f"the mask is {mask_size[1]} x {mask_size[0]} pixels, the photograph "
                f"{size[1]} x {size[0]}: {row.ground_truth_uri}"
                + (_turned(header) if mask_size == stored else "")
            )
        found = check_labels(labels, self.label_space)
        unsure = (mask_size or stated_size) in (stored, (0, 0))
        if header.orientation != 1:
            self._turned.append(row.uri)
            if row.ground_truth_uri and self.exif == "apply" and unsure:
                self._unsure_truth.append(row.uri)
        self._contents[row.image_id] = header.content
        return replace(row, labels=found, height=size[0], width=size[1])


def _turned(header: Header) -> str:
    """What to add where a photograph does not fit its truth, and would if it were not turned."""
    return (
        f"; EXIF data turns the photograph (orientation {header.orientation}): draw the truth on "
        "it as a viewer shows it, or take the orientation out (`exiftool -Orientation= FILE`)"
    )
