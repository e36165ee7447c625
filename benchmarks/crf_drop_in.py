"""A program that calls pydensecrf, on pydensecrf and on latticecrf's drop-in: CPU time and ratio.

    python benchmarks/crf_drop_in.py                          # shared photographs, else synthetic
    python benchmarks/crf_drop_in.py --images DIR --cams DIR  # see crf.py

Both sides run the same lines in this process, alternating, one thread each: a new `DenseCRF2D` for
every class of an image (two labels), or one for all labels. Times are CPU seconds of the thread,
the time that lattices take included; medians over the images.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import crf_inputs as inputs
import cv2
import numpy as np
import pydensecrf.densecrf as theirs
from crf import processor, seconds
from pydensecrf.utils import unary_from_softmax

from latticecrf.kernels.warm import warm_up
from latticecrf.pydensecrf import densecrf as ours

# Gaussian sigma and compat, bilateral sigma, colour sigma and compat: PPMG's, DeepLab's.
PPMG = (3, 10, 80, 13, 10)
DEEPLAB = (1, 3, 67, 3, 4)


def solve(module: Any, image: Any, scores: Any, numbers: tuple[int, ...]) -> Any:
    """The lines that programs have in common."""
    height, width = image.shape[:2]
    crf = module.DenseCRF2D(width, height, len(scores))
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(scores)))
    crf.addPairwiseGaussian(sxy=numbers[0], compat=numbers[1])
    image = np.ascontiguousarray(image)
    crf.addPairwiseBilateral(sxy=numbers[2], srgb=numbers[3], rgbim=image, compat=numbers[4])
    return np.array(crf.inference(10)).reshape(scores.shape)


def pairs(example: inputs.Example, count: int) -> Any:
    """The problems of two labels, one for each class."""
    maps = inputs.classes(example.cam, count)
    return [np.stack([(1 - u) ** inputs.ALPHA, u]) for u in maps]


def compare(
    title: str,
    data: list[inputs.Example],
    problems: Callable[[inputs.Example], Any],
    numbers: tuple[int, ...],
) -> None:
    """One line: both sides' medians, their ratio, and how far apart the posteriors are."""
    times: dict[Any, list[float]] = {ours: [], theirs: []}
    furthest = 0.0
    for example in data:
        results, given = [], problems(example)
        for module, spent in times.items():
            took, result = seconds(
                lambda module=module, image=example.image, given=given: [
                    solve(module, image, scores, numbers) for scores in given
                ]
            )
            spent.append(took)
            results.append(np.concatenate(result))
        furthest = max(furthest, float(np.abs(results[0] - results[1]).max()))
    a, b = (statistics.median(spent) for spent in times.values())
    print(f"{title:22} {a * 1e3:8.1f} {b * 1e3:8.1f} {b / a:6.1f}x   {furthest:.1e}")


def main() -> None:
    """Parse the options and print every figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    inputs.add_arguments(parser)
    parser.add_argument("--count", type=int, default=12, help="images to use, evenly spaced")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    data = inputs.load(options.images, options.cams, options.count)
    print(f"{processor()}; {len(data)} images; kernels ready in {warm_up():.2f} s")
    print("CPU ms an image            ours   theirs    ratio   furthest")
    for count in (1, 2, 4):
        title = f"{count} classes of 2 labels"
        compare(title, data, lambda example, count=count: pairs(example, count), PPMG)
    for kind in ("peaked", "dense"):
        compare(
            f"21 labels, {kind}",
            data,
            lambda example, kind=kind: [inputs.scores(kind, example, 21, 0, None)],
            DEEPLAB,
        )


if __name__ == "__main__":
    main()
