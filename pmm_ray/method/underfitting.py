"""Pretended under-fitting: the loss of pixels whose pseudo-label is probably wrong is limited.

Legend: L = loss map, any shape: one cross-entropy value per pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pmm_ray.method.checks import check_number

UnderfittingKind = Literal["clamp", "none"]


def _clamp(loss_map: Tensor, kappa: float) -> Tensor:
    """`L * (kappa / L)` where L >= kappa (Eq. 11), written as a minimum: its gradient is 0 there.

    Source: released code, which clamps; the paper's fraction has the same gradient if kappa / L
    is differentiated too.
    """
    return loss_map.clamp(max=kappa)


_OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {"clamp": _clamp}


def pretended_underfitting(
    loss_map: Tensor, kind: UnderfittingKind, *, beta: float, kappa: float
) -> Tensor:
    """The mean of a loss map, of its limited version once training has warmed up (Eq. 10-11).

    The statistic is the mean over the whole tensor that is given: in the released code one
    worker's mini-batch of one head. Ignored pixels belong in the map as zeros; they count in both
    means. The unmodified mean is tested against beta, at every call anew.

    Args:
        loss_map: floating point, any shape, >= 0, not empty.
        kind: `clamp` (Eq. 11) or `none` (the plain mean).
        beta: warm-up threshold on the mean, >= 0 (VOC 0.5, COCO 0.8).
        kappa: level of the clamp, > 0 (VOC 0.5, COCO 0.8).

    Returns:
        A scalar tensor, differentiable; NaN or infinite values are passed on.

    Raises:
        ValueError: an empty map, an unknown kind, or beta or kappa out of range.
    """
    if loss_map.numel() == 0 or not loss_map.is_floating_point():
        raise ValueError(f"loss_map must be floating point and not empty, got {loss_map.shape}")
    check_number("beta", beta, 0)
    check_number("kappa", kappa, 0, low_open=True)
    mean = loss_map.mean()
    if kind == "none":
        return mean
    operation = _OPERATIONS.get(kind)
    if operation is None:
        raise ValueError(f"unknown kind {kind!r}: none, {', '.join(_OPERATIONS)}")
    # chosen on the device: comparing in Python would wait for the GPU at every step
    return torch.where(mean.detach() < beta, operation(loss_map, kappa).mean(), mean)
