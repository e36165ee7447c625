"""The masks of a finished run, split by split, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, TypeVar

from PIL import ImageFile

from pmm_ray.config import RunConfig
from pmm_ray.report.outcome import SplitMasks, last_of_splits, mask_stages, result_stages
from pmm_ray.report.run_data import RunData, load_run
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorKind, ErrorRow, RowError
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.rows.images import decode_rgb, encode_rgb, opened, read_file
from pmm_ray.runtime.rows.pixels import orientation, stated_orientation
from pmm_ray.runtime.rows.wide_samples import has_16_bits

# images that are read or written at once: what hides the latency of a disk's sync or a bucket
_THREADS = 16
FEW_READ = ("AVIF", "HEIF", "JXL")
"""Formats that other programs often do not read, or do not turn as EXIF says."""

S = TypeVar("S")
T = TypeVar("T")


def in_threads(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """What `work` makes of each item, in their order; many are worked on at once."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(work, items)


@dataclass(frozen=True)
class RunMasks:
    """What an exporter is given."""

    name: str
    """Name of the run."""
    manifest: Manifest
    splits: tuple[SplitMasks, ...]
    run: RunData

    @property
    def config(self) -> RunConfig:
        """The run's resolved configuration.

        Raises:
            CannotRunError: another version of PMM-Ray wrote it, with other keys.
        """
        try:
            return RunConfig.model_validate(self.run.config)
        except ValueError as error:
            raise CannotRunError(
                f"the run's resolved.yaml does not fit this version: {error}; export with the "
                "version that made the run, or run it again"
            ) from error

    @cached_property
    def photographs(self) -> dict[str, dict[str, Any]]:
        """The absolute `uri` and the `labels` of each image, by its id."""
        table = tables.read_table(self.manifest.uri, ["image_id", "uri", "labels"])
        return {
            row["image_id"]: row | {"uri": self.manifest.locate(row["uri"])}
            for row in table.to_pylist()
        }

    def parts(self, masks: SplitMasks) -> Iterator[list[dict[str, Any]]]:
        """Rows of `tables.MASKS`, some dozens at a time."""
        for uri, rows in zip(masks.index.parts, masks.index.rows_of_parts(), strict=True):
            if len(rows):
                yield tables.read_finished(uri).take(rows).to_pylist()

    def each(
        self, split: SplitMasks, progress: Progress, work: Callable[[dict[str, Any]], T]
    ) -> Iterator[tuple[dict[str, Any], T]]:
        """The rows of `parts`, with what `work` made of each in a thread.

        Args:
            progress: shows the images done; those of which `work` returned a RowError have failed.
        """
        with progress.stage(f"export {split.split}", len(split.index)) as shown:
            for part in self.parts(split):
                for row, made in zip(part, in_threads(work, part), strict=True):
                    shown.advance(1, isinstance(made, RowError))
                    yield row, made


@dataclass
class Written:
    """What an exporter wrote: the images, and those that it could not, or left out by reason."""

    image_ids: set[str] = field(default_factory=set)
    errors: list[ErrorRow] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def add(self, image_id: str, fault: RowError | None) -> None:
        """One image that was written, or why it was not."""
        if fault is None:
            self.image_ids.add(image_id)
        else:
            self.fail(image_id, fault.kind, fault.message, fault.uri)

    def fail(self, image_id: str, kind: ErrorKind, message: str, uri: str = "") -> None:
        """One image that cannot be written."""
        self.errors.append(ErrorRow(image_id, "export", kind, message, uri))


def portable(
    uri: str, *, apply_exif: bool, endings: Collection[str] | None = None
) -> tuple[bytes, str]:
    """A photograph as other programs show it as we do: its bytes, and the ending of their format.

    Usually the file's own bytes. A PNG of its pixels instead, if they do not read its format, by
    its ending or content, or show it otherwise: see `FEW_READ` and `_is_seen_alike`.

    Args:
        apply_exif: whether its mask was made with the EXIF orientation.
        endings: that are read, in lower case; None: any.

    Raises:
        RowError: `missing` or `decode`.
    """
    data, ending = read_file(uri), PurePosixPath(uri).suffix
    known = endings is None or ending.lower() in endings
    with opened(data, uri=uri) as image:
        if known and image.format not in FEW_READ and _is_seen_alike(image, apply_exif):
            return data, ending
    return encode_rgb(decode_rgb(data, apply_exif=apply_exif, uri=uri)), ".png"


def _is_seen_alike(image: ImageFile.ImageFile, apply_exif: bool) -> bool:
    """Whether other programs show an opened photograph as we do.

    Below transparency they show what is hidden, and 16 bits each in another way. They turn by EXIF
    data that we do not read (behind the pixels, as text, as XMP), or that their masks are not
    turned by; OpenCV turns WebP only since lately, and not every TIFF.
    """
    if image.has_transparency_data or has_16_bits(image):
        return False
    ours = orientation(image)
    if ours != 1 and (not apply_exif or image.format == "WEBP"):
        return False
    if image.format == "PNG":
        image.load()  # metadata may follow the pixels
    return ours == stated_orientation(image.getexif)


def open_masks(run_dir: str, stage: str | None) -> RunMasks:
    """Find the masks of a run.

    Args:
        run_dir: uri of the run folder.
        stage: whose masks; None: for each split the last stage that made some.

    Raises:
        CannotRunError: the folder is no run, the run is not finished, it has no such stage, or it
            made no masks.
    """
    run = load_run(run_dir, with_curves=False)
    made = mask_stages(run)
    names = [s.stage for s in made]
    if stage is None and not run.record.get("finished"):
        raise CannotRunError(
            f"{run.run_dir} is not finished: run `pmm run` to its end, or choose a stage that is "
            f"done with --masks ({', '.join(names) or 'none is'})"
        )
    if stage is not None and stage not in names:
        known = ", ".join(names) or "none"
        raise CannotRunError(
            f"{run.run_dir} has no finished masks called {stage!r}; it has {known}"
        )
    # the masks of ladders and ablations are for comparison: only asked for by name
    chosen = result_stages(run) if stage is None else [s for s in made if s.stage == stage]
    if run.manifest_uri is None or not chosen:
        raise CannotRunError(f"{run.run_dir} has made no masks yet")
    manifest = open_manifest(run.manifest_uri)
    name = str(run.record.get("name", "run"))
    return RunMasks(name, manifest, last_of_splits(chosen, manifest), run)
