"""How public programs of weakly supervised segmentation call pydensecrf, by name."""

# H, W: image; K: classes with a map; M: labels, the background first.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array, FloatArray, check_array, check_image
from latticecrf.dense_crf import Backend, DenseCrf
from latticecrf.parameters import CrfParameters

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Solve = Callable[[FloatArray], FloatArray]

# What `Preset.labels` gives ignored pixels, and `Setting.labels` any number of labels.
_IGNORED_ID, IGNORED = 255, -1
# SEAM takes 1e-5 from a map of zeros and divides by 1e-5; float16 rounds.
_LOWEST, _HIGHEST = -1.001, 1.001
# What Caffe's networks take from blue, green and red.
_MEAN_BGR = np.array([104.008, 116.669, 122.675], np.float32)


@dataclass(frozen=True)
class Setting:
    """What one program does.

    Attributes:
        source: The program, and others that do the same.
        parameters: Kernels and iterations.
        colors: What the bilateral kernel sees: `rgb`; or `bgr - mean`, cast to uint8, where it
            wraps around.
        background: Where the background's plane comes from: the scores hold it (`given`), a power
            of what the maps leave (`exponent`), hard labels at a threshold (`threshold`), or the
            softmax of the maps beside a threshold (`softmax`).
        strengths: The exponents or thresholds. Of two, the first makes a foreground that is sure,
            the second a background; what is neither is ignored.
        certainty: How probable a hard label is.
        least_posterior: A pixel whose best posterior is below it is ignored.
    """

    source: str
    parameters: CrfParameters
    colors: Literal["rgb", "bgr - mean"] = "rgb"
    background: Literal["given", "exponent", "threshold", "softmax"] = "given"
    strengths: tuple[float, ...] = ()
    certainty: float = 0.7
    least_posterior: float = 0.0

    def crf(self, image_HW3: Image, backend: Backend = "lattice") -> DenseCrf:
        """The CRF of an image, RGB uint8 [H, W, 3], in this program's colours and numbers."""
        image = check_image(image_HW3)
        if self.colors == "bgr - mean":
            shifted = image[..., ::-1].astype(np.float32) - _MEAN_BGR
            # A cast of negative floats to uint8 is undefined; in the program it wraps around.
            image = shifted.astype(np.int32).astype(np.uint8)
        return DenseCrf(image, self.parameters, backend)

    def labels(self, planes: FloatArray, solve: Solve) -> Labels:
        """The labels of one image, however its scores become posteriors.

        Args:
            planes: As for `Preset.labels`.
            solve: Makes posteriors [M, H, W] of scores [M, H, W]: `DenseCrf.joint`, or nothing.

        Returns:
            As `Preset.labels`, of any number of labels: `IGNORED` where a pixel is ignored.
        """
        if self.background == "given":
            return self._strongest(solve(planes))
        found = [self._strongest(solve(self._scores(planes, s))) for s in self.strengths]
        labels_HW = found[0]
        if len(found) == 2:
            sure_foreground, sure_background = found
            labels_HW = np.where(sure_foreground > 0, sure_foreground, IGNORED)
            labels_HW[(sure_foreground == 0) & (sure_background == 0)] = 0
        return labels_HW

    def _scores(self, maps_KHW: FloatArray, strength: float) -> FloatArray:
        """Scores of the background and every map, [K + 1, H, W]."""
        if self.background == "exponent":
            highest_HW = maps_KHW.max(axis=0, initial=0.0)
            return np.concatenate([((1 - highest_HW) ** strength)[None], maps_KHW])
        threshold_1HW = np.full((1, *maps_KHW.shape[1:]), strength, maps_KHW.dtype)
        padded = np.concatenate([threshold_1HW, maps_KHW])
        if self.background == "softmax":
            grown = np.exp(padded - padded.max(axis=0))
            return grown / grown.sum(axis=0)
        label_HW = padded.argmax(axis=0)
        certainty, count = self.certainty, len(padded)
        wrong = (1 - certainty) / max(1, count - 1)
        right = label_HW == np.arange(count)[:, None, None]
        return np.where(right, certainty, wrong).astype(np.float32)

    def _strongest(self, posterior_MHW: FloatArray) -> Labels:
        labels_HW = posterior_MHW.argmax(axis=0)
        labels_HW[posterior_MHW.max(axis=0) < self.least_posterior] = IGNORED
        return labels_HW


class Preset(Enum):
    """The settings in use."""

    SEAM = Setting(
        "SEAM infer_SEAM.py",
        CrfParameters.seam(),
        background="exponent",
        strengths=(4.0, 24.0),
    )
    IRN = Setting(
        "IRN step/cam_to_ir_label.py; ReCAM, LPCAM, AdvCAM, W-OoD",
        CrfParameters(10, 3.0, 3.0, 50.0, 5.0, 10.0),
        background="threshold",
        strengths=(0.30, 0.05),
    )
    DEEPLAB = Setting("deeplab-pytorch main.py", CrfParameters.segmentation(), "bgr - mean")
    CLIP_ES = Setting(
        "CLIP-ES eval_cam_with_crf.py",
        CrfParameters.segmentation(),
        "bgr - mean",
        background="exponent",
        strengths=(1.0,),
        least_posterior=0.95,
    )
    EXCEL = Setting(
        "ExCEL tools/infer_lam.py; MoRe tools/infer_seg_voc.py, DHR produce_wss_masks.py",
        CrfParameters.segmentation(),
    )
    MORE = Setting(
        "MoRe tools/infer_lam.py",
        CrfParameters.segmentation(),
        background="exponent",
        strengths=(1.0,),
    )
    TOCO = Setting("ToCo tools/infer_seg_voc.py; DuPL, SeCo", CrfParameters(10, 1, 1, 121, 5, 4))
    TOCO_CAM = Setting(
        "ToCo, labels of CAMs",
        CrfParameters(10, 3, 3, 36, 3, 4),
        background="softmax",
        strengths=(0.7, 0.25),
    )
    WECLIP = Setting("WeCLIP test_msc_flip_voc.py; AFA", CrfParameters(10, 3, 3, 64, 5, 4))
    MCTFORMER = Setting("MCTformer seg/infer_seg.py", CrfParameters(10, 4, 3, 83, 5, 3))
    WEAKTR = Setting("WeakTr segm/eval/make_crf.py, VOC", CrfParameters(10, 3, 3, 83, 5, 3))
    COSA = Setting("CoSA evaluation_engine.py", CrfParameters(1, 1, 1, 121, 5, 4))

    def posteriors(self, image_HW3: Image, scores_MHW: FloatArray) -> Float32Array:
        """The posteriors of scores that hold the background, as this program makes them.

        Args:
            image_HW3: RGB, uint8 [H, W, 3]; turned into the program's colours.
            scores_MHW: Floating [M, H, W], 0..1.

        Returns:
            float32 [M, H, W].

        Raises:
            ValueError: An argument does not fit.
        """
        _check_range("scores_MHW", check_array("scores_MHW", scores_MHW, "MHW"))
        return self.value.crf(image_HW3).joint(scores_MHW)

    def labels(self, image_HW3: Image, planes: FloatArray) -> Labels:
        """The labels that this program gives an image.

        Args:
            image_HW3: See `posteriors`.
            planes: Scores [M, H, W] where the setting's background is `given`, else activation
                maps [K, H, W]; floating, 0..1 (SEAM has maps down to -1).

        Returns:
            int64 [H, W]: 0 the background, k + 1 the map k, 255 ignored. With scores the label is
            the plane.

        Raises:
            ValueError: An argument does not fit, or there are more labels than ids below 255.
        """
        crf = self.value.crf(image_HW3)
        height, width = image_HW3.shape[:2]
        checked = check_array("planes", planes, "KHW", (None, height, width))
        _check_range("planes", checked)
        count = len(checked) + (self.value.background != "given")
        if count == 0:
            raise ValueError("planes has no plane: give the scores of the background at least")
        if count > _IGNORED_ID:
            raise ValueError(f"{count} labels compete in one image: at most {_IGNORED_ID} can")
        labels_HW = self.value.labels(checked, crf.joint)
        labels_HW[labels_HW == IGNORED] = _IGNORED_ID
        return labels_HW


def _check_range(name: str, planes: FloatArray) -> None:
    low, high = planes.min(initial=0.0), planes.max(initial=0.0)
    if low < _LOWEST or high > _HIGHEST:
        raise ValueError(
            f"{name} reaches from {low:.4g} to {high:.4g}, not from 0 to 1: divide each map by its"
            " maximum, or take the softmax of the scores"
        )
