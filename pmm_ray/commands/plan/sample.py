"""Which images a plan is timed on: a few of each split, spread over class counts and sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError

_SAMPLE_FILE = "sample.parquet"


class Group(NamedTuple):
    """What decides which stages take an image."""

    split: str
    truth: bool
    """Whether it has a ground-truth mask."""
    labelled: bool
    """Whether it has image-level labels."""


class Sample(NamedTuple):
    """The images to time, and how many there are of their kind."""

    uri: str
    """Of a manifest that holds just them."""
    group_of: Mapping[str, Group]
    """Image id -> its group."""
    population: Mapping[Group, int]
    """Images of each group in the whole data set, of the splits that are used."""

    def count(self, split: str, *, truth: bool = False) -> int:
        """Images of a split in the sample, or those of them that have a ground-truth mask."""
        return sum(g.split == split and (g.truth or not truth) for g in self.group_of.values())


def spread(costs: Sequence[tuple[int, ...]], images: int) -> list[int]:
    """Positions of so many items, evenly spaced in the order of their costs.

    Args:
        costs: one tuple per item, for example (classes, pixels).
        images: how many; all where there are no more.
    """
    order = sorted(range(len(costs)), key=lambda position: (costs[position], position))
    images = min(images, len(order))
    return [order[int((i + 0.5) * len(order) / images)] for i in range(images)]


def choose_sample(manifest_uri: str, folder: str, splits: Sequence[str], images: int) -> Sample:
    """Choose images of a manifest and write a manifest of them.

    Args:
        manifest_uri: the whole data set.
        folder: where `sample.parquet` is written; beside the manifest its uris stay relative.
        splits: an equal part of the images is of each; of every group there is at least one.
        images: how many.

    Raises:
        CannotRunError: the splits hold no image.
    """
    table = tables.read_table(manifest_uri)
    names = ["labels", "height", "width", "split", "ground_truth_uri"]
    columns = [table.column(name).to_pylist() for name in names]
    groups, costs = [], []
    for labels, height, width, split, truth in zip(*columns, strict=True):
        groups.append(Group(split, truth is not None, bool(labels)))
        costs.append((len(labels or ()), height * width))
    population = Counter(group for group in groups if group.split in splits)
    present = [split for split in splits if any(group.split == split for group in population)]
    if not present:
        raise CannotRunError(f"{manifest_uri} has no image of the splits {', '.join(splits)}")
    chosen: list[int] = []
    for number, split in enumerate(present):
        wanted = images // len(present) + (number < images % len(present))
        rows = [row for row, group in enumerate(groups) if group.split == split]
        chosen += [rows[i] for i in spread([costs[row] for row in rows], max(wanted, 1))]
    for group in population.keys() - {groups[row] for row in chosen}:
        chosen.append(groups.index(group))
    uri = storage.join(folder, _SAMPLE_FILE)
    sample = _anchored(table.take(chosen), storage.parent(storage.absolute(manifest_uri)), folder)
    storage.write_bytes(uri, tables.to_bytes(sample, row_group_size=tables.MANIFEST_ROW_GROUP))
    ids = sample.column("image_id").to_pylist()
    return Sample(uri, {i: groups[row] for i, row in zip(ids, chosen, strict=True)}, population)


def usual_size(manifest_uri: str) -> tuple[int, int]:
    """Mean height and width of a manifest's photographs, px."""
    table = tables.read_table(manifest_uri, ["height", "width"])
    height, width = (pc.mean(table.column(name)).as_py() for name in ("height", "width"))
    return round(height), round(width)


def _anchored(table: pa.Table, root: str, folder: str) -> pa.Table:
    """The table with uris that hold in another folder than the one they begin at."""
    if storage.absolute(folder) == root:
        return table
    for name in ("uri", "ground_truth_uri"):
        values = [
            None if value is None else storage.anchor(value, root)
            for value in table.column(name).to_pylist()
        ]
        position = table.schema.get_field_index(name)
        table = table.set_column(position, table.schema.field(name), pa.array(values, pa.string()))
    return table
