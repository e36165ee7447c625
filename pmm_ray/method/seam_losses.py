"""SEAM's losses: classification, adaptive minimum, equivariance and cross equivariance (paper 3.5).

The siamese network sees an image (branch 1) and the same image at 0.3 of its size (branch 2), and
gives each a CAM and a refined CAM. Channel 0 of both is the background. What each loss teaches:

    classification, equivariance        backbone and class head (the background's row: never)
    adaptive minimum, cross equivariance   the correlation module alone, whose input is detached
"""

# B: images; C: classes with the background; H, W: maps of branch 1; h, w: maps of branch 2.

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Released code: the margin of a map's minimum and of the denominator.
_EPSILON = 1e-5

SIAMESE_SCALE = 0.3
"""Size of the second branch's image over the first's (released code)."""


class SeamLosses(NamedTuple):
    """The four losses, scalars, and their sum."""

    classification: Tensor
    minimum: Tensor
    equivariance: Tensor
    cross_equivariance: Tensor

    @property
    def total(self) -> Tensor:
        """All weights are 1 (released code)."""
        return self.classification + self.minimum + self.equivariance + self.cross_equivariance


def max_norm(maps_BCHW: Tensor) -> Tensor:
    """Stretch each map from its minimum to its maximum, negative scores dropped.

    Args:
        maps_BCHW: raw scores, floating [B, C, H, W].

    Returns:
        [B, C, H, W], 0..1; a constant map becomes 0.

    Raises:
        ValueError: not four axes, or no pixels.

    Source: released code, with its margins of 1e-5 below and in the denominator.
    """
    _check_maps("maps_BCHW", maps_BCHW)
    positive = F.relu(maps_BCHW)
    low = positive.amin(dim=(2, 3), keepdim=True)
    high = positive.amax(dim=(2, 3), keepdim=True)
    return F.relu(positive - low - _EPSILON) / (high - low + _EPSILON)


def compared_maps(maps_BCHW: Tensor, labels_BC: Tensor, size: tuple[int, int]) -> Tensor:
    """The maps as the two branches are compared: stretched, brought to one size, labels only.

    Args:
        maps_BCHW: raw CAM or refined CAM of one branch, floating [B, C, H, W].
        labels_BC: 1 for the image's classes and for the background, else 0, [B, C].
        size: (h, w) of the smaller branch, px.

    Returns:
        [B, C, h, w], 0..1, 0 for absent classes.

    Raises:
        ValueError: shapes do not fit.

    Source: released code (bilinear, corners aligned; stretched before it is resized).
    """
    _check_labels(maps_BCHW, labels_BC)
    maps = max_norm(maps_BCHW)
    if maps.shape[2:] != size:
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
    return maps * labels_BC[:, :, None, None].to(maps.dtype)


def classification_loss(cam_BCHW: Tensor, labels_BC: Tensor) -> Tensor:
    """Multi-label soft margin loss of the foreground maps' spatial means.

    Args:
        cam_BCHW: raw CAM, floating [B, C, H, W]; channel 0 takes no part.
        labels_BC: 0 or 1, [B, C]; column 0 takes no part.

    Returns:
        A scalar, the mean over images and foreground classes.

    Raises:
        ValueError: shapes do not fit.

    Source: reference: SEAM.
    """
    _check_labels(cam_BCHW, labels_BC)
    logits_BC = cam_BCHW[:, 1:].mean(dim=(2, 3))
    return F.multilabel_soft_margin_loss(logits_BC, labels_BC[:, 1:].to(logits_BC.dtype))


def adaptive_min_pooling(refined_BCHW: Tensor, labels_BC: Tensor, share: float = 0.25) -> Tensor:
    """Mean of the smallest foreground scores of each image: the background has to stay empty.

    Args:
        refined_BCHW: refined CAM, floating [B, C, H, W]; channel 0 takes no part.
        labels_BC: 0 or 1, [B, C]: of absent classes nothing is asked.
        share: of the pixels, those with the smallest score, 0..1 (released code: 25 %).

    Returns:
        A scalar: mean over images and those pixels of the strongest class's positive score.

    Raises:
        ValueError: shapes do not fit, or the share leaves no pixel.

    Source: released code (rounds the number of pixels down).
    """
    _check_labels(refined_BCHW, labels_BC)
    gated = refined_BCHW * labels_BC[:, :, None, None].to(refined_BCHW.dtype)
    strongest_BN = gated[:, 1:].amax(dim=1).flatten(1)
    count = _count(share, strongest_BN.shape[1])
    return F.relu(strongest_BN.topk(count, dim=1, largest=False).values).mean()


def equivariant_regularization(first_BChw: Tensor, second_BChw: Tensor) -> Tensor:
    """Mean distance of the branches' CAMs over the foreground classes, absent ones included.

    Args:
        first_BChw, second_BChw: `compared_maps` of the two CAMs, [B, C, h, w].

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.

    Source: reference: SEAM. Absent classes are zeros in both maps and lower the mean.
    """
    _check_pair(first_BChw, second_BChw)
    return (first_BChw[:, 1:] - second_BChw[:, 1:]).abs().mean()


def equivariant_cross_regularization(
    first_BChw: Tensor,
    second_BChw: Tensor,
    refined_first_BChw: Tensor,
    refined_second_BChw: Tensor,
    share: float = 0.2,
) -> Tensor:
    """Distance of each branch's refined CAM to the other's CAM, over its largest entries.

    The CAM that is aimed at is detached, its background is set to 1 - the strongest class, and of
    its foreground only each pixel's strongest class is kept.

    Args:
        first_BChw, second_BChw: `compared_maps` of the two CAMs, [B, C, h, w].
        refined_first_BChw, refined_second_BChw: of the two refined CAMs, background included.
        share: of the C * h * w entries of an image, those that differ most, 0..1 (released
            code: 20 %).

    Returns:
        A scalar: the sum of both directions' means.

    Raises:
        ValueError: shapes differ, or the share leaves no entry.

    Source: released code (top-k per image, its number rounded down).
    """
    for other in (second_BChw, refined_first_BChw, refined_second_BChw):
        _check_pair(first_BChw, other)
    loss = first_BChw.new_zeros(())
    for aim, refined in ((second_BChw, refined_first_BChw), (first_BChw, refined_second_BChw)):
        distance_BN = (winner_takes_all(aim.detach()) - refined).abs().flatten(1)
        count = _count(share, distance_BN.shape[1])
        loss = loss + distance_BN.topk(count, dim=1).values.mean()
    return loss


def winner_takes_all(maps_BChw: Tensor) -> Tensor:
    """Keep each pixel's strongest foreground class; the background is 1 - its score.

    Args:
        maps_BChw: [B, C, h, w], 0..1; what channel 0 holds is replaced.

    Returns:
        [B, C, h, w]; classes that tie are all kept.

    Source: released code.
    """
    foreground = maps_BChw[:, 1:]
    strongest = foreground.amax(dim=1, keepdim=True)
    kept = foreground.masked_fill(foreground < strongest, 0)
    return torch.cat([1 - strongest, kept], dim=1)


def seam_losses(
    cam_BCHW: Tensor,
    refined_BCHW: Tensor,
    small_cam_BChw: Tensor,
    small_refined_BChw: Tensor,
    labels_BF: Tensor,
) -> SeamLosses:
    """All losses of the siamese network.

    Args:
        cam_BCHW, refined_BCHW: CAM and refined CAM of the image, floating [B, C, H, W].
        small_cam_BChw, small_refined_BChw: of the image at `SIAMESE_SCALE` of its size.
        labels_BF: image-level labels of the C - 1 foreground classes, 0 or 1.

    Returns:
        The losses; classification and minimum are means over the branches.

    Raises:
        ValueError: shapes do not fit.

    Source: released code; reference: SEAM.
    """
    labels_BC = torch.cat([torch.ones_like(labels_BF[:, :1]), labels_BF], dim=1)
    size = (small_cam_BChw.shape[2], small_cam_BChw.shape[3])
    first = compared_maps(cam_BCHW, labels_BC, size)
    second = compared_maps(small_cam_BChw, labels_BC, size)
    refined_first = compared_maps(refined_BCHW, labels_BC, size)
    refined_second = compared_maps(small_refined_BChw, labels_BC, size)
    return SeamLosses(
        classification=(
            classification_loss(cam_BCHW, labels_BC)
            + classification_loss(small_cam_BChw, labels_BC)
        )
        / 2,
        minimum=(
            adaptive_min_pooling(refined_BCHW, labels_BC)
            + adaptive_min_pooling(small_refined_BChw, labels_BC)
        )
        / 2,
        equivariance=equivariant_regularization(first, second),
        cross_equivariance=equivariant_cross_regularization(
            first, second, refined_first, refined_second
        ),
    )


def small_view(images_B3HW: Tensor) -> Tensor:
    """The second branch's images: bilinear, corners aligned, sides rounded down (448 -> 134).

    Args:
        images_B3HW: normalised images, floating [B, 3, H, W].
    """
    size = [max(1, int(side * SIAMESE_SCALE)) for side in images_B3HW.shape[2:]]
    return F.interpolate(images_B3HW, size, mode="bilinear", align_corners=True)


def _count(share: float, entries: int) -> int:
    count = int(entries * share)
    if not 0 < share <= 1 or count < 1:
        raise ValueError(f"share = {share} of {entries} entries leaves none (0 < share <= 1)")
    return count


def _check_maps(name: str, maps: Tensor) -> None:
    if maps.ndim != 4 or not maps.is_floating_point() or 0 in maps.shape:
        raise ValueError(
            f"{name} must be floating point [B, C, H, W] and not empty, got "
            f"{maps.dtype} {list(maps.shape)}"
        )


def _check_labels(maps_BCHW: Tensor, labels_BC: Tensor) -> None:
    _check_maps("maps", maps_BCHW)
    if labels_BC.shape != maps_BCHW.shape[:2] or maps_BCHW.shape[1] < 2:
        raise ValueError(
            f"labels {list(labels_BC.shape)} do not fit maps {list(maps_BCHW.shape)}: a row per "
            "image, a column for the background and for each class"
        )


def _check_pair(first: Tensor, second: Tensor) -> None:
    _check_maps("maps", first)
    if first.shape != second.shape or first.shape[1] < 2:
        raise ValueError(
            f"the branches' maps {list(first.shape)} and {list(second.shape)} do not fit"
        )
