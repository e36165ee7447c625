"""As the tutorials do: features of one's own, grey and many channels, steps one by one."""

import sys

import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import (
    create_pairwise_bilateral,
    create_pairwise_gaussian,
    unary_from_labels,
    unary_from_softmax,
)

rng = np.random.default_rng(0)
H, W, C = 36, 40, 4
labels = np.kron(rng.integers(0, C + 1, (4, 5)), np.ones((9, 8), int))
grey = np.kron(rng.random((4, 5)), np.ones((9, 8)))[..., None]
many = np.kron(rng.random((4, 5, 5)), np.ones((9, 8, 1))).astype(np.float32)
out = []

d = dcrf.DenseCRF(W * H, C)
d.setUnaryEnergy(unary_from_labels(labels, C, gt_prob=0.7, zero_unsure=True))
d.addPairwiseEnergy(create_pairwise_gaussian(sdims=(3, 3), shape=(H, W)), compat=3)
d.addPairwiseEnergy(
    create_pairwise_bilateral(sdims=(10, 10), schan=(0.01,), img=grey, chdim=2), compat=10
)
Q, tmp1, tmp2 = d.startInference()
for _ in range(5):
    d.stepInference(Q, tmp1, tmp2)
out.append(np.array(Q).reshape(C, H, W))

probs = np.stack([0.6 * (labels == k) + 0.1 for k in range(C)]).astype(np.float32)
d = dcrf.DenseCRF(W * H, C)
d.setUnaryEnergy(unary_from_softmax(probs, scale=0.9, clip=None))
d.addPairwiseEnergy(
    create_pairwise_bilateral(sdims=(9, 7), schan=[0.3] * 5, img=many, chdim=2),
    compat=np.array([1, 2, 3, 4], np.float32),
    kernel=dcrf.FULL_KERNEL,
    normalization=dcrf.NORMALIZE_BEFORE,
)
out.append(np.array(d.inference(5)).reshape(C, H, W))

image = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((9, 8, 1))).astype(np.uint8)
d = dcrf.DenseCRF2D(W, H, C)
d.setUnaryEnergy(-np.log(probs / probs.sum(0)).reshape(C, -1))
compat = (1 - np.eye(C)).astype(np.float32) * 4
d.addPairwiseGaussian(
    sxy=(3, 5), compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC
)
d.addPairwiseBilateral(
    (40, 30), (13, 13, 10), image, compat, dcrf.CONST_KERNEL, dcrf.NORMALIZE_AFTER
)
out.append(np.array(d.inference(5)).reshape(C, H, W))
np.save(sys.argv[1], np.concatenate(out))
