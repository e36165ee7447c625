"""As deeplab-pytorch and CLIP-ES call pydensecrf: a class, BGR, a pool of processes."""

import multiprocessing
import sys

import numpy as np
import pydensecrf.densecrf as dcrf
import pydensecrf.utils as utils

MEAN = np.array([104.008, 116.669, 122.675], np.float32)


class DenseCRF:
    def __init__(self, iter_max, pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std):
        self.iter_max = iter_max
        self.pos_w = pos_w
        self.pos_xy_std = pos_xy_std
        self.bi_w = bi_w
        self.bi_xy_std = bi_xy_std
        self.bi_rgb_std = bi_rgb_std

    def __call__(self, image, probmap):
        C, H, W = probmap.shape
        U = utils.unary_from_softmax(probmap)
        U = np.ascontiguousarray(U)
        image = np.ascontiguousarray(image)
        d = dcrf.DenseCRF2D(W, H, C)
        d.setUnaryEnergy(U)
        d.addPairwiseGaussian(sxy=self.pos_xy_std, compat=self.pos_w)
        d.addPairwiseBilateral(
            sxy=self.bi_xy_std, srgb=self.bi_rgb_std, rgbim=image, compat=self.bi_w
        )
        Q = d.inference(self.iter_max)
        return np.array(Q).reshape((C, H, W))


def process(seed):
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((9, 8, 1))).astype(np.float32)
    image += rng.normal(0, 4, image.shape)
    logit = np.kron(rng.normal(0, 2, (6, 4, 5)), np.ones((1, 9, 8)))
    prob = np.exp(logit) / np.exp(logit).sum(0)
    shifted = (image - MEAN).astype(np.int32).astype(np.uint8)
    return DenseCRF(10, 3, 1, 4, 67, 3)(shifted, prob.astype(np.float32))


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(process, range(3))
    np.save(sys.argv[1], np.concatenate(results))
