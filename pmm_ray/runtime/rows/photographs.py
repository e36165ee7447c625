"""How every worker finds and decodes the photographs of a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import ErrorRow, RowError
from pmm_ray.runtime.core.stage import RunContext
from pmm_ray.runtime.mapping.stream import InputRow, Worker
from pmm_ray.runtime.rows.images import decode_mask, decode_rgb, read_file

# Photographs that are read at once, before they are asked for.
_AHEAD = 4
# Key of a row of the manifest under which `reading_ahead` leaves what gives the file's bytes.
_READER = "read"


class ReadAhead:
    """Files in the order of a list, of which the next few are always being read.

    Args:
        uris: of the files.
    """

    def __init__(self, uris: Sequence[str]) -> None:
        self._uris = uris
        self._pool = ThreadPoolExecutor(_AHEAD, "read-ahead")
        self._asked: dict[int, Future[bytes]] = {}
        self._next = 0

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def take(self, number: int) -> bytes:
        """The bytes of one file, once.

        Raises:
            RowError: `missing`.
        """
        while self._next < min(number + 1 + _AHEAD, len(self._uris)):
            self._asked[self._next] = self._pool.submit(read_file, self._uris[self._next])
            self._next += 1
        for passed_over in [i for i in self._asked if i < number]:
            del self._asked[passed_over]
        return self._asked.pop(number).result()


@dataclass(frozen=True)
class Photographs:
    """Small and picklable: travels to the workers instead of the manifest.

    Attributes:
        root: folder that relative uris of the manifest start from.
        apply_exif: whether images are turned as their EXIF orientation says.
        max_pixels: larger images are refused before decoding.
        label_space: names and ids of the data set.
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

    def reading_ahead(self, worker: Worker) -> Worker:
        """The worker, with the files of a chunk's next photographs read while it computes.

        What `image` gets of a row then comes from memory: a bucket answers a read in tens of
        milliseconds, which is as long as a mask takes.
        """

        def ahead(rows: Sequence[InputRow]) -> Iterator[dict[str, Any] | ErrorRow]:
            uris = [storage.anchor(row["manifest"]["uri"], self.root) for row in rows]
            with ReadAhead(uris) as reader:
                named = [
                    row | {"manifest": row["manifest"] | {_READER: partial(reader.take, number)}}
                    for number, row in enumerate(rows)
                ]
                yield from worker(named)

        return ahead

    def image(self, row: Mapping[str, Any]) -> NDArray[np.uint8]:
        """RGB uint8 [H, W, 3] of a manifest row.

        Raises:
            RowError: `missing`, `decode`, `too_large`; or `decode` when the pixels no longer have
                the size that the manifest states.
        """
        uri = storage.anchor(row["uri"], self.root)
        read = row.get(_READER, partial(read_file, uri))
        image = decode_rgb(read(), apply_exif=self.apply_exif, max_pixels=self.max_pixels, uri=uri)
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
        wrong = [x for x in labels if not 1 <= x <= self.label_space.num_foreground]
        if wrong:
            raise RowError(
                "label", f"labels {wrong} lie outside 1..{self.label_space.num_foreground}"
            )
        return labels

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
