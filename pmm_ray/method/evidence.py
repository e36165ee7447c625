"""How well masks fit a known class, without a pixel label: what a classifier loses with them.

A classifier looks at a photograph of which parts are hidden. Hiding all but a right mask takes
nothing from the class's score, hiding what is in it takes all, and it covers no more than it must.
"""

# N: pairs of an image and one of its classes; S: masks of each; H, W: image.

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from latticecrf.checks import FloatArray, check_image

BLUR = 0.1
"""Standard deviation of the blur that hides, as a share of the image's long side. Grey or black
in its place has edges, and a classifier sees shapes in them."""


def hidden(image_HW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The image with all of it hidden: what stands in place of pixels that are hidden.

    Args:
        image_HW3: RGB, uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: wrong shape or dtype.
    """
    image = check_image(image_HW3)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), BLUR * max(image.shape[:2])), np.uint8)


def parts(
    image_HW3: npt.NDArray[np.uint8],
    hidden_HW3: npt.NDArray[np.uint8],
    object_HW: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(the object alone, the rest alone), each with the other hidden.

    Args:
        image_HW3: RGB, uint8 [H, W, 3].
        hidden_HW3: of `hidden`.
        object_HW: bool [H, W].

    Returns:
        uint8 [H, W, 3] each.
    """
    inside_HW1 = object_HW[..., None]
    return (
        np.where(inside_HW1, image_HW3, hidden_HW3),
        np.where(inside_HW1, hidden_HW3, image_HW3),
    )


def lift(
    whole_N: FloatArray,
    hidden_N: FloatArray,
    object_NS: FloatArray,
    rest_NS: FloatArray,
    area_NS: FloatArray,
) -> npt.NDArray[np.float64]:
    """How much more of the classes' evidence masks hold than of the area.

    Of a pair (image, class) with probability w of the whole image and h < w of the hidden one, a
    mask that covers the share a of the image, whose object alone has o and whose rest alone r,
    keeps (o - h) / (w - h) of the evidence and removes (w - r) / (w - h) of it, both held within 0
    and 1. Then

        lift = sum of (w - h) * ((kept + removed) / 2 - a) / sum of (w - h)

    over all pairs with w > h: the others are of classes that the classifier does not see. An empty
    mask has 0, one of the whole image has 0, and a random one has about 0, because it holds
    as much of the evidence as of the area. This is the prior on the area: a pixel belongs into a
    mask where it tells more of the class than the image's pixels do on average.

    Args:
        whole_N: probabilities of the image, floating [N], 0..1.
        hidden_N: of the hidden image, [N].
        object_NS: of the object alone under each mask, [N, S].
        rest_NS: of the rest alone, [N, S].
        area_NS: masked share, [N, S], 0..1.

    Returns:
        float64 [S], -1..1; NaN where no pair has w > h.

    Source: ours. Preserving and deleting as in Fong and Vedaldi (ICCV 2017); the area that makes
    chance 0 takes the place of their weight of the area, which has to be chosen.
    """
    seen = np.greater(whole_N, hidden_N)
    whole_N1, hidden_N1 = (np.asarray(p, np.float64)[seen, None] for p in (whole_N, hidden_N))
    object_NS, rest_NS, area_NS = (np.asarray(p)[seen] for p in (object_NS, rest_NS, area_NS))
    if not seen.any():
        return np.full(area_NS.shape[1], np.nan)
    weight_N1 = whole_N1 - hidden_N1
    # no more than all: pairs of small weight would have shares far beyond, and decide everything
    kept_NS = ((object_NS - hidden_N1) / weight_N1).clip(0.0, 1.0)
    removed_NS = ((whole_N1 - rest_NS) / weight_N1).clip(0.0, 1.0)
    beyond_NS = (kept_NS + removed_NS) / 2.0 - area_NS
    return (weight_N1 * beyond_NS).sum(axis=0) / weight_N1.sum()
