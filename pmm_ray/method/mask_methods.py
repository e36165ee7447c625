"""The ways from CAMs to a mask, by name: a row each.

A row names its function, which is imported when it is used: the configuration reads the names.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from latticecrf.checks import FloatArray
    from latticecrf.dense_crf import Backend
    from pmm_ray.method.masks import MaskParameters


class MakeMasks(Protocol):
    """Makes masks of one image, one for each set of parameters.

    Args:
        image_HW3: RGB, uint8 [H, W, 3].
        cam_KHW: CAM at the image's size, floating [K, H, W], 0..1.
        labels: K ids, 1..65534.
        combinations: S parameters that share their CRF; the method takes what it needs.
        backend: see `DenseCrf`.

    Returns:
        S masks of ids, unsigned [H, W]; 0 is the background.
    """

    def __call__(
        self,
        image_HW3: npt.NDArray[np.uint8],
        cam_KHW: FloatArray,
        labels: Sequence[int],
        combinations: Sequence[MaskParameters],
        backend: Backend = "lattice",
    ) -> Sequence[npt.NDArray[Any]]: ...


@dataclass(frozen=True)
class MaskMethod:
    """One way from CAMs to a mask.

    Attributes:
        title: its name in tables and reports.
        function: `module:name` of a `MakeMasks`.
    """

    title: str
    function: str

    def load(self) -> MakeMasks:
        return pkgutil.resolve_name(self.function)


_HERE = "pmm_ray.method.masks"
MASK_METHODS: dict[str, MaskMethod] = {
    "ppmg": MaskMethod("PPMG", f"{_HERE}:proportional_masks"),
    "ppmg_no_cvs": MaskMethod("PPMG without CVS", f"{_HERE}:proportional_masks_without_cvs"),
    "crf_argmax": MaskMethod("CRF argmax", f"{_HERE}:crf_argmax_masks"),
    "crf_argmax_cvs": MaskMethod("CRF argmax with CVS", f"{_HERE}:crf_argmax_masks_with_cvs"),
    "cam_argmax": MaskMethod("CAM argmax", f"{_HERE}:cam_argmax_masks"),
}
"""Name in recipes (`masks.method`, `evaluate.ladder`) -> the method (Tab. 2)."""


def known_method(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: there is no such method; the message has those that are.
    """
    if name not in MASK_METHODS:
        raise ValueError(f"{name!r} is no way to masks: choose one of {', '.join(MASK_METHODS)}")
    return name
