"""How full the passes of multi-scale CAMs are on a GPU, with the sizes of real photographs.

    python benchmarks/pass_fill.py MANIFEST [--images 10582] [--seed 0]

MANIFEST is a finished import's `manifest.parquet`. Its photographs' sizes are repeated by chance up
to `--images`; views go through `nets.batches.Batches` in chunks as a run makes them, in the order
of ids and with photographs of one size together, by a network that computes nothing. No GPU is
needed: tensors have a shape and no content.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pmm_ray.config import CamsConfig
from pmm_ray.nets.batches import Batches, Piece
from pmm_ray.nets.scale_cams import view_sizes
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.mapping.chunks import largest_first

CHUNK = 32
"""Images of a chunk, see `table_stage.auto_batch`."""
MAPS = 3
"""Maps that an image keeps on the device until its last view was seen."""


@dataclass
class Shape:
    """A photograph that has a size and no content."""

    height: int
    width: int
    config: CamsConfig

    @property
    def held(self) -> int:
        return 4 * MAPS * self.height * self.width

    def pieces(self) -> Iterator[Piece]:
        for rows, columns in view_sizes(self.height, self.width, self.config):
            views = torch.empty(1 + self.config.flip, 3, rows, columns, device="meta")
            yield Piece((views,), lambda output: None)


def filled(sizes: Sequence[tuple[int, int]], config: CamsConfig) -> tuple[float, float]:
    """(share of the passes' pixels that views take, views of a pass) of photographs in an order."""
    batches = Batches(lambda views: views[:, :1], "auto", torch.device("meta"))
    total: dict[str, int] = {}
    for start in range(0, len(sizes), CHUNK):
        for _ in batches(Shape(*size, config) for size in sizes[start : start + CHUNK]):
            pass
        for name, count in batches.counted().items():
            total[name] = total.get(name, 0) + count
    return total["pixels"] / total["room"], total["views"] / total["passes"]


def main() -> None:
    """Print a row for each order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("--images", type=int, default=10582)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table = tables.read_table(args.manifest, ["height", "width"])
    chosen = np.random.default_rng(args.seed).integers(0, table.num_rows, args.images)
    table = table.take(pa.array(chosen))
    sizes = list(zip(*(c.to_pylist() for c in table.columns), strict=True))
    order = largest_first(table.column("height").to_numpy(), table.column("width").to_numpy())
    config = CamsConfig(kind="multi_scale")
    print(f"{args.images} images of {len(set(sizes))} sizes, scales {list(config.scales)}")
    print("| order | passes full | views a pass |\n|---|---|---|")
    for name, shown in (("ids", sizes), ("sizes", [sizes[i] for i in order])):
        share, views = filled(shown, config)
        print(f"| {name} | {share:.0%} | {views:.1f} |")


if __name__ == "__main__":
    main()
