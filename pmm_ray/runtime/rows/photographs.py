"""How every worker finds and decodes the photographs of a manifest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import ErrorRow, RowError
from pmm_ray.runtime.core.stage import RunContext
from pmm_ray.runtime.mapping.workers import InputRow, Worker, row_by_row
from pmm_ray.runtime.rows.images import decode_mask, decode_rgb, read_file

# Photographs that are read at once, before they are asked for.
_AHEAD = 4
T = TypeVar("T")
Content = TypeVar("Content")


def prefetch(
    read: Callable[[T], Content], files: Iterable[T], threads: int = _AHEAD, ahead: int = _AHEAD
) -> Generator[Future[Content]]:
    """Files in their order, of which the next few are always being read by threads.

    Args:
        read: the content of one.
        files: whatever names them.
        ahead: how many are read before they are asked for, or wait for a thread.

    Yields:
        What holds the content of the next file, or what `read` raised.
    """
    pool = ThreadPoolExecutor(threads, "prefetch")
    under_way: deque[Future[Content]] = deque()
    try:
        for file in files:
            under_way.append(pool.submit(read, file))
            if len(under_way) > ahead:
                yield under_way.popleft()
        while under_way:
            yield under_way.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Photographs:
    """Small and picklable: travels to the workers instead of the manifest.

    Attributes:
        root: folder that relative uris of the manifest start from.
        apply_exif: whether images are turned as their EXIF orientation says.
        max_pixels: larger images are refused before decoding.
    """

    root: str
    apply_exif: bool
    max_pixels: int
    label_space: LabelSpace

    @classmethod
    def of(cls, context: RunContext) -> Photographs:
        manifest = context.manifest
        return cls(
            root=manifest.root,
            apply_exif=manifest.apply_exif,
            max_pixels=context.config.data.max_pixels,
            label_space=manifest.label_space,
        )

    def row_by_row(
        self, stage: str, function: Callable[[InputRow, NDArray[np.uint8]], dict[str, Any]]
    ) -> Worker:
        """`workers.row_by_row` of a function that also takes the row's photograph.

        The function's row has the photograph's absolute uri.

        The files of the next photographs are read while one is worked on: a bucket answers a read
        in tens of milliseconds, which is as long as a mask takes.
        """

        def worker(rows: Sequence[InputRow]) -> Iterator[dict[str, Any] | ErrorRow]:
            def of_row(row: InputRow) -> dict[str, Any]:
                manifest = row["manifest"]
                image = self.image(manifest, next(files).result())
                uri = storage.anchor(manifest["uri"], self.root)
                return function({**row, "manifest": {**manifest, "uri": uri}}, image)

            with closing(prefetch(self._read, [row["manifest"] for row in rows])) as files:
                yield from row_by_row(stage, of_row)(rows)

        return worker

    def _read(self, row: Mapping[str, Any]) -> bytes:
        return read_file(storage.anchor(row["uri"], self.root))

    def image(self, row: Mapping[str, Any], data: bytes | None = None) -> NDArray[np.uint8]:
        """RGB uint8 [H, W, 3] of a manifest row.

        Args:
            data: the file's bytes; None: they are read.

        Raises:
            RowError: `missing`, `decode`, `too_large`; or `decode` when the pixels no longer have
                the size that the manifest states.
        """
        uri = storage.anchor(row["uri"], self.root)
        data = self._read(row) if data is None else data
        image = decode_rgb(data, apply_exif=self.apply_exif, max_pixels=self.max_pixels, uri=uri)
        if image.shape[:2] != (row["height"], row["width"]):
            raise RowError(
                "decode",
                f"the manifest says {row['height']} x {row['width']} px, the file has "
                f"{image.shape[0]} x {image.shape[1]}: import the data set again",
                uri,
            )
        return image

    def labels(self, row: Mapping[str, Any]) -> list[int]:
        """The image-level labels, checked.

        Raises:
            RowError: `label` when there are none, or one outside the label space.
        """
        labels = [int(label) for label in row["labels"] or ()]
        if not labels:
            raise RowError("label", "no image-level label: nothing to map for this image")
        self.check_labels(labels)
        return labels

    def check_labels(self, labels: Iterable[int]) -> None:
        """Raises RowError of kind `label` where one is outside the label space."""
        last = self.label_space.num_foreground
        if outside := [label for label in labels if not 1 <= label <= last]:
            raise RowError("label", f"labels {outside} are outside 1..{last}")

    def truth(self, row: Mapping[str, Any]) -> NDArray[Any]:
        """Ground-truth mask of contiguous ids, [H, W].

        Raises:
            RowError: `missing`, `decode` when it is no indexed or grey mask, or `label` when it
                holds a value outside the label space.
        """
        uri, space = storage.anchor(row["ground_truth_uri"], self.root), self.label_space
        try:
            truth = decode_mask(storage.read_bytes(uri), uri=uri)
        except FileNotFoundError as error:
            raise RowError("missing", f"no ground truth at {uri}", uri) from error
        except OSError as error:
            raise RowError("missing", f"the ground truth cannot be read: {error}", uri) from error
        except ValueError as error:
            raise RowError("decode", str(error), uri) from error
        wrong = np.unique(truth[(truth >= space.num_classes) & (truth != space.ignore)])[:10]
        if len(wrong):
            raise RowError(
                "label",
                f"the truth holds {wrong.tolist()}: allowed are 0..{space.num_foreground} and "
                f"{space.ignore}",
                uri,
            )
        return truth


def large_image(manifest_uri: str) -> float:
    """Pixels of a large image of a manifest: 99 of 100 images have no more."""
    sizes = tables.read_table(manifest_uri, ["height", "width"])
    height, width = (sizes[name].to_numpy().astype(np.int64) for name in sizes.column_names)
    return float(np.quantile(height * width, 0.99)) if len(height) else 0.0


def with_long_side(image_HW3: NDArray[np.uint8], long_side: int) -> NDArray[np.uint8]:
    """The image with its long side at `long_side` px, aspect kept, no side below 1 px."""
    height, width = image_HW3.shape[:2]
    scale = long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized: NDArray[np.uint8] = cv2.resize(image_HW3, size, interpolation=method)
    return resized
