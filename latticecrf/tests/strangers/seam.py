"""As SEAM refines CAMs: the scale of the image, no contiguous copy of the unary."""

import sys

import numpy as np


def crf_inference(img, probs, t=10, scale_factor=1, labels=21):
    import pydensecrf.densecrf as dcrf
    from pydensecrf.utils import unary_from_softmax

    h, w = img.shape[:2]
    n_labels = labels
    d = dcrf.DenseCRF2D(w, h, n_labels)
    unary = unary_from_softmax(probs)
    unary = np.ascontiguousarray(unary)
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian(sxy=3 / scale_factor, compat=3)
    d.addPairwiseBilateral(sxy=80 / scale_factor, srgb=13, rgbim=np.copy(img), compat=10)
    Q = d.inference(t)
    return np.array(Q).reshape((n_labels, h, w))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((9, 8, 1))).astype(np.uint8)
    cams = np.kron(rng.random((2, 4, 5)), np.ones((1, 9, 8))).astype(np.float32)
    out = []
    for alpha in (4, 24):
        background = np.power(1 - cams.max(axis=0, keepdims=True), alpha)
        scores = np.concatenate((background, cams), axis=0)
        out.append(crf_inference(image, scores, labels=scores.shape[0]))
        out.append(crf_inference(image, scores, labels=scores.shape[0], scale_factor=12))
    np.save(sys.argv[1], np.concatenate(out))
