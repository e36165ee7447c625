"""Memory of one process that makes masks, by image size: what a task reserves.

python benchmarks/crf_memory.py

Each size is measured in a process of its own: three classes, CVS, CRF, PPMG, as `make_masks` does
it. The last line is the straight line through the sizes: bytes of the bare process, and per pixel.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys

SIZES = ((320, 240), (640, 480), (960, 720), (1280, 960))


def peak(size: tuple[int, int]) -> int:
    """Peak resident bytes of a process that made one mask of a size."""
    import numpy as np
    import pyarrow.parquet  # noqa: F401 - a task has it loaded
    import ray.data  # noqa: F401

    from pmm_ray.method.masks import MaskParameters, proportional_masks

    width, height = size
    random = np.random.default_rng(0)
    # blocks of colour with noise: as many lattice points as a photograph, roughly
    blocks = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    image = blocks.repeat(16, 0).repeat(16, 1)[:height, :width]
    image = np.clip(image + random.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    cam = random.random((3, height, width)).astype(np.float32)
    proportional_masks(image, cam, [1, 2, 3], [MaskParameters(alpha=11.0)], "lattice")[0]
    # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def main() -> None:
    """Measure and print."""
    import numpy as np

    context = multiprocessing.get_context("spawn")
    rows = []
    for size in SIZES:
        with context.Pool(1) as pool:
            rows.append((size[0] * size[1], pool.apply(peak, (size,))))
        print(f"{size[0]} x {size[1]}: {rows[-1][1] / 1e6:.0f} MB")
    pixels, peaks = np.array(rows, float).T
    slope, base = np.polyfit(pixels, peaks, 1)
    print(f"process {base / 1e6:.0f} MB, {slope:.0f} bytes per pixel")


if __name__ == "__main__":
    main()
