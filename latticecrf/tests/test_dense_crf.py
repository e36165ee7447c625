"""The public class: reproducible bytes, threads, memory, edge cases and refusals."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from latticecrf import CrfParameters, DenseCrf
from latticecrf.kernels.warm import warm_up
from latticecrf.mean_field.solver import LatticeSolver


def problem(height: int, width: int, count: int, seed: int = 0) -> tuple[Any, Any]:
    """A noisy image and smooth-ish scores."""
    rng = np.random.default_rng(seed)
    image_HW3 = rng.integers(0, 256, (height, width, 3), dtype=np.uint8) // 4
    return image_HW3, rng.random((count, height, width), np.float32)


def test_same_bytes_for_any_number_of_classes_together() -> None:
    image_HW3, scores_KHW = problem(37, 41, 21)
    crf = DenseCrf(image_HW3, CrfParameters.ppmg())
    together_KHW = crf.binary(scores_KHW, 1 - scores_KHW)
    for first, last in [(0, 1), (3, 5), (4, 7), (9, 13), (2, 8), (1, 14), (5, 21)]:
        part_KHW = crf.binary(scores_KHW[first:last], 1 - scores_KHW[first:last])
        assert part_KHW.tobytes() == together_KHW[first:last].tobytes()


@pytest.mark.parametrize("labels", [2, 13, 21, 40])
def test_same_bytes_on_every_run(labels: int) -> None:
    image_HW3, scores_MHW = problem(37, 41, labels)
    runs = {
        DenseCrf(image_HW3, CrfParameters.segmentation()).joint(scores_MHW).tobytes()
        for _ in range(2)
    }
    assert len(runs) == 1


def test_two_labels_jointly_are_one_binary_problem() -> None:
    image_HW3, scores_KHW = problem(30, 33, 1)
    crf = DenseCrf(image_HW3, CrfParameters.seam())
    joint_MHW = crf.joint(np.concatenate([1 - scores_KHW, scores_KHW]))
    binary_KHW = crf.binary(scores_KHW, 1 - scores_KHW)
    np.testing.assert_allclose(joint_MHW[1], binary_KHW[0], atol=1e-4)


def test_threads_share_objects_and_lattices() -> None:
    problems = [problem(40, 50, 3, seed) for seed in range(4)]
    crfs = [DenseCrf(image_HW3, CrfParameters.ppmg()) for image_HW3, _ in problems]
    alone = [crf.binary(s, 1 - s).tobytes() for crf, (_, s) in zip(crfs, problems, strict=True)]

    def solve(index: int) -> bytes:
        image_HW3, scores_KHW = problems[index % 4]
        # Half the calls share an object between threads, half build their own.
        crf = crfs[index % 4] if index < 16 else DenseCrf(image_HW3, CrfParameters.ppmg())
        return crf.binary(scores_KHW, 1 - scores_KHW).tobytes()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(solve, range(32)))
    assert results == [alone[index % 4] for index in range(32)]


def test_kernels_run_without_the_gil() -> None:
    # With this switch interval nobody takes the GIL from a thread that does not give it up, so
    # the counter moves during a solve only if the kernels released it.
    image_HW3, scores_KHW = problem(120, 150, 2)
    crf = DenseCrf(image_HW3, CrfParameters.ppmg())
    crf.binary(scores_KHW, 1 - scores_KHW)
    counter, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            counter[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    thread = threading.Thread(target=count)
    try:
        thread.start()
        moved = False
        for _ in range(200):
            before = counter[0]
            crf.binary(scores_KHW, 1 - scores_KHW)
            moved = moved or counter[0] > before
            if moved:
                break
        assert moved
    finally:
        done.set()
        sys.setswitchinterval(interval)
        thread.join()


MEMORY_PROBE = """
import re, sys
from pathlib import Path
import numpy as np
from latticecrf import CrfParameters, DenseCrf
width, height = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
small = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
image = np.kron(small, np.ones((16, 16, 1), np.uint8))
image += rng.integers(0, 12, image.shape, dtype=np.uint8)
scores = np.full((5, height, width), 0.1, np.float32)
scores[:, height // 4 : height // 2, : width // 2] = 0.9
DenseCrf(image, CrfParameters.ppmg()).binary(scores, 1 - scores)
assert "torch" not in sys.modules and "ray" not in sys.modules
# Not ru_maxrss: that one starts from the parent's.
status = Path("/proc/self/status").read_text()
print(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
"""


def test_peak_memory_is_small_and_linear() -> None:
    warm_up()  # compiling takes more memory than solving
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", MEMORY_PROBE, *size],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        * 1024
        for size in (("640", "480"), ("1280", "960"), ("1920", "1440"))
    ]
    assert peaks[0] < 250e6
    # Bytes a pixel, from one size to the next: scores included, and no faster than linear.
    slopes = [(peaks[1] - peaks[0]) / (3 * 640 * 480), (peaks[2] - peaks[1]) / (5 * 640 * 480)]
    assert slopes[1] < 1.25 * slopes[0]
    assert slopes[0] < 300


@pytest.mark.parametrize("backend", ["lattice", "pydensecrf"])
def test_layouts_and_types_of_arrays_do_not_matter(backend: Any) -> None:
    image_HW3, scores_KHW = problem(20, 26, 2)
    crf = DenseCrf(image_HW3, CrfParameters.ppmg(), backend)
    expected_KHW = crf.binary(scores_KHW, 1 - scores_KHW)
    image_3WH = np.ascontiguousarray(image_HW3.T)
    strided_HW3 = image_3WH.T
    strided_HW3.flags.writeable = False
    backwards_KHW = np.asfortranarray(scores_KHW)
    backwards_KHW.flags.writeable = False
    crf = DenseCrf(strided_HW3, CrfParameters.ppmg(), backend)
    wide_KHW = crf.binary(backwards_KHW.astype(np.float64), 1 - backwards_KHW)
    np.testing.assert_array_equal(wide_KHW, expected_KHW)
    np.testing.assert_array_equal(image_HW3, problem(20, 26, 2)[0])
    np.testing.assert_array_equal(scores_KHW, problem(20, 26, 2)[1])


@pytest.mark.parametrize("backend", ["lattice", "pydensecrf"])
def test_nothing_to_solve_gives_an_empty_result(backend: Any) -> None:
    crf = DenseCrf(np.zeros((4, 5, 3), np.uint8), CrfParameters.ppmg(), backend)
    empty = np.empty((0, 4, 5), np.float32)
    assert crf.binary(empty, empty).shape == (0, 4, 5)
    assert crf.joint(empty).shape == (0, 4, 5)
    np.testing.assert_allclose(crf.joint(np.full((1, 4, 5), 0.2)), 1.0, atol=1e-6)


def test_without_iterations_or_kernels_scores_are_only_normalized() -> None:
    image_HW3, scores_KHW = problem(9, 8, 2)
    for parameters in (
        CrfParameters(0, 3.0, 3.0, 80.0, 13.0, 10.0),
        CrfParameters(4, 3.0, 0.0, 80.0, 13.0, 0.0),
    ):
        crf = DenseCrf(image_HW3, parameters)
        np.testing.assert_allclose(crf.binary(scores_KHW, 1 - scores_KHW), scores_KHW, atol=1e-5)
        np.testing.assert_allclose(
            crf.joint(scores_KHW), scores_KHW / scores_KHW.sum(axis=0), atol=1e-5
        )


def test_callers_mistakes() -> None:
    image_HW3, scores_KHW = problem(6, 7, 2)
    crf = DenseCrf(image_HW3, CrfParameters.ppmg())
    broken = scores_KHW.copy()
    broken[0, 0, 0] = np.nan
    for bad, message in (
        (broken, "NaN"),
        (scores_KHW[0], "3 axes"),
        (scores_KHW[:, 1:], "axis H"),
        (scores_KHW.astype(np.int32), "dtype"),
        (scores_KHW.tolist(), "NumPy array"),
    ):
        with pytest.raises(ValueError, match=message):
            crf.binary(bad, scores_KHW)
        with pytest.raises(ValueError, match=message):
            crf.joint(bad)
    with pytest.raises(ValueError, match="axis K"):
        crf.binary(scores_KHW, scores_KHW[:1])
    with pytest.raises(ValueError, match="backend"):
        DenseCrf(image_HW3, CrfParameters.ppmg(), "other")  # type: ignore[arg-type]
    for bad_image in (image_HW3.astype(np.int16), image_HW3[..., :2], image_HW3[:0]):
        with pytest.raises(ValueError, match="image_HW3"):
            DenseCrf(bad_image, CrfParameters.ppmg())


def test_parameters_are_validated_and_presets_carry_the_published_numbers() -> None:
    for field, value in (
        ("iterations", -1),
        ("iterations", 1.5),
        ("gaussian_sigma", 0.0),
        ("bilateral_color_sigma", float("nan")),
        ("bilateral_weight", -1.0),
        ("gaussian_weight", 3e38),
        ("bilateral_weight", 1e31),
    ):
        numbers: dict[str, Any] = {
            "iterations": 1,
            "gaussian_sigma": 3.0,
            "gaussian_weight": 3.0,
            "bilateral_sigma": 80.0,
            "bilateral_color_sigma": 13.0,
            "bilateral_weight": 10.0,
        }
        with pytest.raises(ValueError, match=field):
            CrfParameters(**numbers | {field: value})
    assert CrfParameters(np.int64(10), 3, 3, 80, 13, 10) == CrfParameters.seam()  # type: ignore[arg-type]
    assert CrfParameters.seam() == CrfParameters.base_mask() == CrfParameters(10, 3, 3, 80, 13, 10)
    assert CrfParameters.ppmg() == CrfParameters(10, 3, 10, 80, 13, 10)
    assert CrfParameters.segmentation() == CrfParameters(10, 1, 3, 67, 3, 4)


def test_the_largest_weights_give_posteriors() -> None:
    image_HW3, scores_KHW = problem(20, 31, 40)
    crf = DenseCrf(image_HW3, CrfParameters(3, 3.0, 1e30, 80.0, 13.0, 1e30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(crf.binary(scores_KHW, 1 - scores_KHW)).all()
        for count in (1, 2, 3, 17, 21, 40):
            total_HW = crf.joint(scores_KHW[:count]).sum(axis=0)
            np.testing.assert_allclose(total_HW, 1.0, rtol=1e-4)


def test_a_solver_keeps_no_reference_to_the_callers_image() -> None:
    image_HW3, scores_KHW = problem(9, 8, 1)
    solver = LatticeSolver(image_HW3, CrfParameters.ppmg())
    before = solver.binary(scores_KHW, 1 - scores_KHW)
    image_HW3[:] = 0
    np.testing.assert_array_equal(solver.binary(scores_KHW, 1 - scores_KHW), before)
