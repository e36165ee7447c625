"""Chunks of images: the driver sends ids and the places of their rows, never an image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import Ids, TableIndex, id_column
from pmm_ray.runtime.mapping.workers import InputRow


def make_chunks(image_ids: Ids, inputs: Mapping[str, TableIndex], size: int) -> list[str]:
    """Chunks of at most `size` images, as JSON.

    `{"ids": [...], "rows": {table: [[uri, [row, ...]], ...]}}`: the rows of an image are found at
    its position, counted over the files of a table.
    """
    ids = id_column(image_ids)
    places = {name: index.places(ids) for name, index in inputs.items()}
    return [
        json.dumps(
            {
                "ids": ids.slice(start, size).to_pylist(),
                "rows": {
                    name: _runs(
                        inputs[name].parts, parts[start : start + size], rows[start : start + size]
                    )
                    for name, (parts, rows) in places.items()
                },
            },
            separators=(",", ":"),
        )
        for start in range(0, len(ids), size)
    ]


def sizes_together(image_ids: Ids, manifest: TableIndex) -> pa.ChunkedArray:
    """The images in an order in which a chunk has few sizes: their views share passes on a GPU.

    Args:
        manifest: index of a manifest's file, which knows the images.
    """
    ids = id_column(image_ids)
    [uri] = manifest.parts
    _, rows = manifest.places(ids)
    sizes = tables.read_table(uri, ["height", "width"])
    height, width = (sizes.column(name).to_numpy()[rows] for name in ("height", "width"))
    return ids.take(pa.array(largest_first(height, width)))


def largest_first(height: NDArray[np.int32], width: NDArray[np.int32]) -> NDArray[np.intp]:
    """Positions by size, equal ones together; the last chunks, for which others wait, are short."""
    return np.lexsort((width, height, -height.astype(np.int64) * width))


def _runs(
    files: Sequence[str], parts: NDArray[np.int32], rows: NDArray[np.int32]
) -> list[tuple[str, list[int]]]:
    """Rows that follow each other in one file, with its uri."""
    cuts = np.flatnonzero(np.diff(parts)) + 1
    pieces = zip(np.split(parts, cuts), np.split(rows, cuts), strict=True)
    return [(files[part[0]], piece.tolist()) for part, piece in pieces]


def read_chunk(chunk: Mapping[str, Any]) -> list[InputRow]:
    """The rows of a chunk, joined over its tables; every file is opened once."""
    rows: list[InputRow] = [{} for _ in chunk["ids"]]
    for name, runs in chunk["rows"].items():
        places = ((uri, row) for uri, numbers in runs for row in numbers)
        by_file: dict[str, list[tuple[int, int]]] = {}
        for position, (uri, row) in enumerate(places):
            by_file.setdefault(uri, []).append((position, row))
        for uri, wanted in by_file.items():
            found = tables.read_rows(uri, [row for _, row in wanted])
            for (position, _), row in zip(wanted, found, strict=True):
                rows[position][name] = row
    return rows
