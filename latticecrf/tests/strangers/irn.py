"""As IRN and its family make labels of CAMs: hard labels with a probability, at two thresholds."""

import sys

import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_labels


def crf_inference_label(img, labels, t=10, n_labels=21, gt_prob=0.7):
    h, w = img.shape[:2]
    d = dcrf.DenseCRF2D(w, h, n_labels)
    unary = unary_from_labels(labels, n_labels, gt_prob=gt_prob, zero_unsure=False)
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(np.copy(img)), compat=10)
    q = d.inference(t)
    return np.argmax(np.array(q).reshape((n_labels, h, w)), axis=0)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((9, 8, 1))).astype(np.uint8)
    cams = np.kron(rng.random((2, 4, 5)), np.ones((1, 9, 8)))
    keys = np.pad(np.array([3, 7]) + 1, (1, 0))
    confs = []
    for threshold in (0.30, 0.05):
        label = np.argmax(np.pad(cams, ((1, 0), (0, 0), (0, 0)), constant_values=threshold), 0)
        pred = crf_inference_label(image, label, n_labels=keys.shape[0])
        confs.append(keys[pred])
    conf = confs[0].copy()
    conf[confs[0] == 0] = 255
    conf[confs[1] + confs[0] == 0] = 0
    np.save(sys.argv[1], conf.astype(np.uint8))
