"""What cannot be right is a `ValueError`, also where pydensecrf ends the whole process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from latticecrf.pydensecrf import densecrf as d
from latticecrf.pydensecrf import utils

SETUP = """
import numpy as np
rng = np.random.default_rng(0)
image = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
energies = rng.random((3, 120), np.float32)
features = rng.random((4, 120), np.float32)
crf = d.DenseCRF2D(10, 12, 3)
crf.setUnaryEnergy(energies)
not_a_number = features.copy()
not_a_number[1, 7] = np.nan
"""
# pydensecrf2 1.1 ends the process with a signal
DEADLY = {
    "a deviation of 0": "crf.addPairwiseGaussian(sxy=0, compat=3)",
    "a colour deviation of 0": "crf.addPairwiseBilateral(80, 0, image, 10)",
    "a deviation that is not a number": "crf.addPairwiseGaussian(float('nan'), 3)",
    "a feature that is not a number": "crf.addPairwiseEnergy(not_a_number, 3)",
    "no labels": "d.DenseCRF(120, 0).inference(1)",
    "fewer than no variables": "d.DenseCRF(-1, 2).inference(1)",
}
WRONG = DEADLY | {
    "energies of too few pixels": "crf.setUnaryEnergy(energies[:, 1:])",
    "energies of too many labels": "crf.setUnaryEnergy(np.concatenate([energies, energies]))",
    "energies of planes": "crf.setUnaryEnergy(energies.reshape(3, 12, 10))",
    "energies of integers": "crf.setUnaryEnergy(energies.astype(np.int64))",
    "an energy that is not a number": "crf.setUnaryEnergy(not_a_number[:3])",
    "an energy without bound": "crf.setUnaryEnergy(np.full((3, 120), -np.inf, np.float32))",
    "a pixel without labels": "crf.setUnaryEnergy(np.full((3, 120), np.inf, np.float32))",
    "a list": "crf.setUnaryEnergy(energies.tolist())",
    "an image of another size": "crf.addPairwiseBilateral(80, 13, image[:5], 10)",
    "an image on its side": "crf.addPairwiseBilateral(80, 13, image.transpose(1, 0, 2), 10)",
    "a grey image": "crf.addPairwiseBilateral(80, 13, image[..., 0], 10)",
    "an image of floats": "crf.addPairwiseBilateral(80, 13, image.astype(np.float32), 10)",
    "an image of four channels": "crf.addPairwiseBilateral(80, 13, image[..., [0, 1, 2, 2]], 10)",
    "an image of wide integers": "crf.addPairwiseBilateral(80, 13, image.astype(np.uint16), 10)",
    "two deviations for three channels": "crf.addPairwiseBilateral(80, (13, 13), image, 10)",
    "a vector of another length": "crf.addPairwiseGaussian(3, np.ones(2, np.float32))",
    "a matrix of another size": "crf.addPairwiseGaussian(3, np.eye(2, dtype=np.float32))",
    "a matrix of matrices": "crf.addPairwiseGaussian(3, np.ones((3, 3, 3), np.float32))",
    "an infinite weight": "crf.addPairwiseGaussian(3, float('inf'))",
    "a weight beyond float32": "crf.addPairwiseGaussian(3, 1e39)",
    "a weight that overflows": "crf.addPairwiseGaussian(3, -3e38)",
    "a vector that overflows": "crf.addPairwiseGaussian(3, np.full(3, 3e38, np.float32))",
    "a matrix beyond float32": "crf.addPairwiseGaussian(3, np.full((3, 3), 1e39))",
    "a weight of text": "crf.addPairwiseGaussian(3, 'strong')",
    "no weight": "crf.addPairwiseGaussian(3, None)",
    "a weight of digits": "crf.addPairwiseGaussian(3, '3')",
    "weights that are no numbers": "crf.addPairwiseGaussian(3, [None] * 3)",
    "a vector of one weight": "crf.addPairwiseGaussian(3, np.ones(1, np.float32))",
    "deviations of digits": "crf.addPairwiseGaussian('33', 3)",
    "deviations by name": "crf.addPairwiseGaussian({'x': 3, 'y': 3}, 3)",
    "no deviation": "crf.addPairwiseGaussian(None, 3)",
    "an unknown normalization": "crf.addPairwiseGaussian(3, 3, normalization=9)",
    "an unknown kernel": "crf.addPairwiseGaussian(3, 3, kernel=9)",
    "features of too few pixels": "crf.addPairwiseEnergy(features[:, 1:], 3)",
    "features without dimensions": "crf.addPairwiseEnergy(features[:0], 3)",
    "features of nine dimensions": "crf.addPairwiseEnergy(np.ones((9, 120), np.float32), 3)",
    "iterations of text": "crf.inference('5')",
    "iterations beyond floats": "crf.inference(10**400)",
    "iterations without end": "crf.inference(float('inf'))",
    "not a number of iterations": "crf.inference(float('nan'))",
    "an empty image": "d.DenseCRF2D(0, 12, 3)",
    "a width of text": "d.DenseCRF2D('10', 12, 3)",
    "a width of two numbers": "d.DenseCRF2D(np.array([10, 12]), 12, 3)",
    "half a pixel": "d.DenseCRF2D(0.5, 12, 3)",
    "pixels without end": "d.DenseCRF2D(float('inf'), 12, 3)",
    "not a number of pixels": "d.DenseCRF(float('nan'), 3)",
    "an object of a list": "d.ConstUnary(energies.tolist())",
    "an object without labels": "d.ConstUnary(energies[:0])",
    "energies that are no object": "crf.setUnary(energies)",
    "energies of features": "crf.setUnaryEnergy(energies, np.ones((120, 120), np.float32))",
    "posteriors of another shape": "crf.stepInference(energies[:, 1:], None, None)",
}


@pytest.mark.parametrize("call", WRONG.values(), ids=list(WRONG))
def test_it_is_a_value_error(call: str) -> None:
    names: dict[str, Any] = {"d": d}
    exec(SETUP, names)
    with pytest.raises(ValueError, match=r"\w"):
        exec(call, names)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (WRONG["a grey image"], r"shape \(12, 10\), not \[H, W, 3\].*create_pairwise_bilateral"),
        (WRONG["an image of four channels"], r"shape \(12, 10, 4\), not \[H, W, 3\].*addPairwiseE"),
        (WRONG["an image of floats"], r"float32, not uint8: .*astype.*create_pairwise_bilateral"),
        (WRONG["energies of integers"], r"int64, not floating: convert it by \.astype"),
        (WRONG["a list"], r"got list: np\.asarray"),
        (
            WRONG["no weight"],
            r"None is no number: give one, or an array of shape \(3,\) or \(3, 3\)",
        ),
        (WRONG["a weight of digits"], "'3' is no number: give one"),
    ],
)
def test_common_mistakes_are_told_what_to_do(call: str, message: str) -> None:
    names: dict[str, Any] = {"d": d}
    exec(SETUP, names)
    with pytest.raises(ValueError, match=message):
        exec(call, names)


@pytest.mark.parametrize("call", DEADLY.values(), ids=list(DEADLY))
def test_pydensecrf_ends_the_process_there(call: str) -> None:
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    script = f"import pydensecrf.densecrf as d\n{SETUP}\n{call}"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert answer.returncode < 0
    mine = script.replace("import pydensecrf.densecrf as d", "from latticecrf.pydensecrf import *")
    mine = mine.replace("import *", "import densecrf as d")
    answer = subprocess.run([sys.executable, "-c", mine], capture_output=True, text=True)
    assert answer.returncode == 1
    assert "ValueError" in answer.stderr


def test_too_small_deviations_are_refused_when_the_lattice_is_built() -> None:
    crf = d.DenseCRF2D(10, 12, 3)
    crf.addPairwiseGaussian(1e-6, 3)
    with pytest.raises(ValueError, match="too small"):
        crf.inference(1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: utils.unary_from_softmax(np.float32(1.0)),
        lambda: utils.unary_from_softmax(np.ones((2, 3)), scale=1.5),
        lambda: utils.unary_from_labels(np.array([3]), 2, 0.7),
        lambda: utils.unary_from_labels(np.array([-1]), 2, 0.7),
        lambda: utils.unary_from_labels(np.array([2]), 2, 0.7, zero_unsure=False),
        lambda: utils.unary_from_labels(np.array([0.5]), 2, 0.7),
        lambda: utils.unary_from_labels(np.array([1]), 2, 1.0),
        lambda: utils.unary_from_labels(np.array([1]), 0, 0.7),
        lambda: utils.create_pairwise_gaussian((3,), (4, 6)),
        lambda: utils.create_pairwise_gaussian((3, 0), (4, 6)),
        lambda: utils.create_pairwise_bilateral((3, 3), (2,) * 4, np.ones((4, 6, 3)), 2),
        lambda: utils.create_pairwise_bilateral((3,) * 3, (2,) * 3, np.ones((4, 6, 3)), 2),
    ],
)
def test_helpers_refuse_what_does_not_fit(call: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        call()
