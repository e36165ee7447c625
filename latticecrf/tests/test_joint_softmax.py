"""The joint update's kernel against the softmax written out, for every way its rows can lie."""

from __future__ import annotations

import numpy as np
import pytest

from latticecrf.mean_field.joint_softmax import softmax
from latticecrf.simd.rows import WIDE


@pytest.mark.parametrize("pixels", [1, 15, 16, 33, 130])
@pytest.mark.parametrize(("full", "tail"), [(0, 1), (0, 2), (0, 4), (0, 16), (1, 4), (2, 8)])
@pytest.mark.parametrize("implied", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_it_is_the_softmax(pixels: int, full: int, tail: int, implied: bool, shifted: bool) -> None:
    rng = np.random.default_rng(pixels + full)
    labels = full * 16 + tail
    largest = 300.0 if shifted else 8.0
    message_NM = rng.uniform(0, largest, (pixels, labels)).astype(np.float32)
    base_NM = rng.uniform(1e-5, 1, (pixels, labels)).astype(np.float32)
    # A lane without a label.
    if labels > 2:
        message_NM[:, -1] = base_NM[:, -1] = 0.0
    rest_N = rng.uniform(1e-5, 1, pixels).astype(np.float32)
    left_N = rng.uniform(0, largest, pixels) if implied else np.zeros(pixels)
    mass_N = (message_NM.sum(1, dtype=np.float64) + left_N).astype(np.float32)

    logits_NM = np.log(np.maximum(base_NM, 1e-300, dtype=np.float64)) + message_NM
    logits_NM[base_NM == 0] = -np.inf
    logits_NM = np.column_stack([logits_NM, np.log(rest_N.astype(np.float64)) + left_N])
    grown_NM = np.exp(logits_NM - logits_NM.max(1, keepdims=True))
    expected_NM = grown_NM / grown_NM.sum(1, keepdims=True)

    def packed(rows_NM: np.ndarray) -> np.ndarray:
        blocks = [rows_NM[:, 16 * k : 16 * k + 16] for k in range(full)]
        return np.concatenate([part.ravel() for part in (*blocks, rows_NM[:, 16 * full :])])

    rows, scale_N = packed(message_NM), np.empty(pixels, np.float32)
    mass = mass_N if implied else mass_N[:0]
    softmax(WIDE, (0,) * tail, rows, packed(base_NM), rest_N, mass, scale_N, shifted)
    # What is left of a sum of large messages is known to its rounding only.
    error = 1e-5 + (1e-6 * float(mass_N.max()) if implied else 0.0)
    np.testing.assert_allclose(rows, packed(expected_NM[:, :-1]), atol=error)
    np.testing.assert_allclose(scale_N * rest_N, expected_NM[:, -1], atol=error)
