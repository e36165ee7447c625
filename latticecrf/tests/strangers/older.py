"""As programs of 2016 and 2017 do: older names of the unary energies, one deviation of three."""

import sys

import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import (
    compute_unary,
    create_pairwise_bilateral,
    create_pairwise_gaussian,
    softmax_to_unary,
)

rng = np.random.default_rng(0)
H, W, C = 36, 40, 3
image = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((9, 8, 1))).astype(np.uint8)
labels = np.kron(rng.integers(0, C + 1, (4, 5)), np.ones((9, 8), int))
probs = np.stack([0.6 * (labels == k) + 0.1 for k in range(C)]).astype(np.float32)
probs /= probs.sum(axis=0)
out = []

for unary in (softmax_to_unary(probs), compute_unary(labels, C, GT_PROB=0.8)):
    d = dcrf.DenseCRF(H * W, C)
    d.setUnaryEnergy(np.ascontiguousarray(unary))
    feats = create_pairwise_gaussian(sdims=(10, 10), shape=image.shape[:2])
    d.addPairwiseEnergy(
        feats, compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC
    )
    feats = create_pairwise_bilateral(sdims=(50, 50), schan=(20,), img=image, chdim=2)
    d.addPairwiseEnergy(
        feats, compat=10, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC
    )
    out.append(np.array(d.inference(5)).reshape(C, H, W))
np.save(sys.argv[1], np.stack(out))
