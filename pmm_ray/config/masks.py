"""The sections of the mask stage: CVS, per-class CRF, PPMG."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from latticecrf import CrfParameters
from latticecrf.parameters import MOST_WEIGHT
from pmm_ray.config.base import Auto, Positive, Section, execution
from pmm_ray.config.classifier import CamsConfig
from pmm_ray.method.mask_methods import known_method

MaskMethodName = Annotated[str, AfterValidator(known_method)]

_PPMG = CrfParameters.ppmg()


class CrfConfig(Section):
    """Dense CRF parameters; the defaults are those of PPMG (released code)."""

    iterations: int = Field(_PPMG.iterations, ge=0)
    """Mean-field iterations."""
    gaussian_sigma: float = Field(_PPMG.gaussian_sigma, gt=0)
    """Smoothness kernel, px."""
    gaussian_weight: float = Field(_PPMG.gaussian_weight, ge=0, le=MOST_WEIGHT)
    """Smoothness kernel's compatibility."""
    bilateral_sigma: float = Field(_PPMG.bilateral_sigma, gt=0)
    """Appearance kernel, px."""
    bilateral_color_sigma: float = Field(_PPMG.bilateral_color_sigma, gt=0)
    """Appearance kernel, grey levels."""
    bilateral_weight: float = Field(_PPMG.bilateral_weight, ge=0, le=MOST_WEIGHT)
    """Appearance kernel's compatibility."""


class MasksConfig(Section):
    """Pseudo-masks from CAMs: CVS, per-class CRF, PPMG (Eq. 2, 5-9, Alg. 1)."""

    method: MaskMethodName = "ppmg"
    """The way from CAMs to a mask: `ppmg`; `crf_argmax` or `cam_argmax`, the usual ones, which the
    paper compares with (Tab. 2); or another row of `pmm_ray.method.mask_methods`."""
    alpha: Annotated[float, Field(gt=0)] | Auto = 11.0
    """Background exponent (Eq. 2). The best value depends on the CAMs; the paper searched 0..20.
    `auto` searches: by held-out images with ground truth where there are some, else by what the
    classifier sees in the masks (`pmm_ray.method.evidence`); see `pmm ablate --sweep`."""
    smoothing: float = Field(0.3, ge=0)
    """Scale factor s of the coefficient of variation (Eq. 6)."""
    threshold: float = Field(0.05, ge=0, lt=1)
    """Foreground threshold t of the coefficient of variation (Eq. 5)."""
    semantics: Literal["released", "paper"] = "released"
    """Which to follow where the paper's text and the released code differ."""
    crf: CrfConfig = CrfConfig()
    """Per-class CRF."""
    backend: Literal["lattice", "pydensecrf"] = "lattice"
    """CRF implementation; both give the same masks."""
    batch_size: Positive | Auto = execution("auto")
    """Images per task; `auto` aims at some seconds of work."""
    tasks: Positive | Auto = execution("auto")
    """Tasks at once; `auto`: one per CPU of the cluster."""
    fused: bool = execution(False)
    """Stream CAMs from the classifier's actors straight into the mask tasks and store none. The
    masks are the same bytes. Each mask stage then makes its own CAMs; `alpha: auto` and the
    ablations, which read CAMs again and again, store them all the same."""

    def identity(self) -> dict[str, Any]:
        """What decides the result beside the method, which each mask stage names itself."""
        out = super().identity()
        del out["method"]
        return out


class BaseCrfConfig(CrfConfig):
    """Dense CRF of the base masks: all classes jointly (released code)."""

    gaussian_weight: float = Field(CrfParameters.base_mask().gaussian_weight, ge=0, le=MOST_WEIGHT)
    """Smoothness kernel's compatibility."""


class BaseConfig(Section):
    """Base masks, which relabel the windows of multi-crop training (paper 3.5)."""

    cams: CamsConfig = CamsConfig()
    """Maps of the first classifier."""
    alpha: float = Field(24.0, gt=0)
    """Background exponent (released code)."""
    threshold: float = Field(0.9, ge=0.5, le=1)
    """A pixel holds the class whose joint posterior exceeds this (released code); from 0.5 on at
    most one can."""
    crf: BaseCrfConfig = BaseCrfConfig()
    """Joint CRF."""
    backend: Literal["lattice", "pydensecrf"] = "lattice"
    """CRF implementation; both give the same masks."""
    batch_size: Positive | Auto = execution("auto")
    """Images per task; `auto` aims at some seconds of work."""
    tasks: Positive | Auto = execution("auto")
    """Tasks at once; `auto`: one per CPU of the cluster."""
