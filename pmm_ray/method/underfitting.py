"""Pretended under-fitting: the loss of pixels whose pseudo-label is probably wrong is limited.

Legend: L = loss map, any shape: one cross-entropy value per pixel; B = images.

While the network still under-fits (mean L >= beta) the loss is unchanged. Later, pixels that it
still disagrees with are more likely to be noise of the pseudo-mask than hard examples, and four
operations limit what they contribute:

    clamp     min(L, kappa)                         gradient 1 below kappa, 0 above
    ignore    L where L <= kappa, else 0            gradient 1 below kappa, 0 above
    pow       (L + 1e-9) ** kappa                   gradient kappa * L ** (kappa - 1)
    reweight  min(kappa / L, 1) * L, weight fixed   gradient 1 below kappa, kappa / L above

`clamp` and `ignore` train alike. Both equal L below kappa, and a constant above it: kappa in one,
0 in the other. The derivative of a constant is 0 either way, so their gradients are the same, bit
for bit; only the value that is logged differs. The paper's fraction L * kappa / L (Eq. 11) is that
same constant, unless its weight kappa / L is held fixed when the gradient is taken: this is
`reweight`, the reading of Eq. 11 under which noisy pixels are weakened instead of dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from latticecrf.ranges import check_number

UnderfittingKind = Literal["none", "clamp", "pow", "ignore", "reweight"]
UnderfittingScope = Literal["group", "worker", "image", "global"]

# the released code's guard: the power's gradient at 0 would be infinite
_EPSILON = 1e-9


def _reweight(loss_map: Tensor, kappa: float) -> Tensor:
    fixed = loss_map.detach()
    weight = torch.where(fixed > kappa, kappa / fixed.clamp(min=kappa), torch.ones_like(fixed))
    return weight * loss_map


_OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "clamp": lambda loss_map, kappa: loss_map.clamp(max=kappa),
    "pow": lambda loss_map, kappa: (loss_map + _EPSILON) ** kappa,
    "ignore": lambda loss_map, kappa: loss_map.where(loss_map <= kappa, torch.zeros_like(loss_map)),
    "reweight": _reweight,
}


def pretended_underfitting(
    loss_map: Tensor,
    kind: UnderfittingKind,
    *,
    beta: float,
    kappa: float,
    scope: UnderfittingScope = "worker",
    group: int = 2,
    labelled: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The mean of a loss map, of its limited version where training has warmed up (Eq. 10-13).

    The unmodified mean is tested against beta, at every call anew. Ignored pixels belong in the map
    as zeros; they count in the mean that is returned.

    Args:
        loss_map: floating point, >= 0, not empty; any shape, [B, ...] for `group` and `image`.
        kind: `clamp` (Eq. 11), `pow` (Eq. 12), `ignore` (Eq. 13), `reweight` (Eq. 11 with a fixed
            weight), or `none` (the plain mean).
        beta: warm-up threshold on the mean, >= 0 (VOC 0.5, COCO 0.8).
        kappa: level or, for `pow`, exponent, > 0 (VOC 0.5, COCO 0.8).
        scope: whose mean is tested. `group`: of each `group` consecutive images, ignored pixels
            included: the released code, where they are one GPU's mini-batch of one head, on any
            number of GPUs. `worker`: of all that is given. `image`: each image's own, over its
            labelled pixels, as the paper's text has it. `global`: as `worker`, over the
            mini-batches of all workers of the default process group.
        group: images of a group (released code: 2). Where a mini-batch holds no whole number of
            groups they go on at the next worker's, and all workers must have as many images.
        labelled: bool, of the map's shape: False where a pixel is ignored; None: nowhere. Read by
            `image` only.

    Returns:
        The mean, a scalar tensor, differentiable; NaN or infinite values are passed on. And the
        share of the map's images whose loss was limited, a scalar tensor in 0..1, without
        gradient; 0 or 1 but for scope `image`.

    Raises:
        ValueError: an empty map, an unknown kind or scope, or beta, kappa or group out of range,
            or images that make no whole number of groups.

    Where the paper and the released code differ this is the released code: a loss of exactly kappa
    is kept (Eq. 11 and 13 limit it), and `pow` adds 1e-9 first.
    """
    if loss_map.numel() == 0 or not loss_map.is_floating_point():
        raise ValueError(f"loss_map must be floating point and not empty, got {loss_map.shape}")
    check_number("beta", beta, 0)
    check_number("kappa", kappa, 0, low_open=True)
    if scope not in get_args(UnderfittingScope):
        raise ValueError(f"unknown scope {scope!r}: {', '.join(get_args(UnderfittingScope))}")
    if group < 1:
        raise ValueError(f"group must be at least 1, got {group}")
    if kind == "none":
        return loss_map.mean(), loss_map.new_zeros(())
    operation = _OPERATIONS.get(kind)
    if operation is None:
        raise ValueError(f"unknown kind {kind!r}: none, {', '.join(_OPERATIONS)}")
    # chosen on the device: comparing in Python would wait for the GPU at every step
    warm = _tested_mean(loss_map.detach(), scope, group, labelled) < beta
    return torch.where(warm, operation(loss_map, kappa), loss_map).mean(), warm.float().mean()


def _tested_mean(
    loss_map: Tensor, scope: UnderfittingScope, group: int, labelled: Tensor | None
) -> Tensor:
    """The mean that is compared with beta: a scalar, or [B, 1, ...] for `group` and `image`."""
    if scope in ("group", "image"):
        flat_BL = loss_map.reshape(len(loss_map), -1)
        if scope == "group":
            means_B = _group_means(flat_BL.mean(1), group)
        elif labelled is None:
            means_B = flat_BL.mean(1)
        else:
            labelled_BL = labelled.reshape(flat_BL.shape)
            means_B = (flat_BL * labelled_BL).sum(1) / labelled_BL.sum(1).clamp(min=1)
        return means_B.reshape(-1, *(1,) * (loss_map.ndim - 1))
    if scope == "global" and dist.is_available() and dist.is_initialized():
        both = torch.stack([loss_map.sum(), loss_map.new_tensor(float(loss_map.numel()))])
        dist.all_reduce(both)
        return both[0] / both[1]
    return loss_map.mean()


def _group_means(means_B: Tensor, group: int) -> Tensor:
    """For each image the mean of its group [B]."""
    images, first = len(means_B), 0
    everyone = means_B
    if images % group and dist.is_available() and dist.is_initialized():
        shares = [torch.empty_like(means_B) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, means_B.contiguous())
        everyone, first = torch.cat(shares), dist.get_rank() * images
    if len(everyone) % group:
        raise ValueError(f"{len(everyone)} images make no whole number of groups of {group}")
    of_groups = everyone.reshape(-1, group).mean(1)
    return of_groups.repeat_interleave(group)[first : first + images]
