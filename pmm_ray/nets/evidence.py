"""A classifier looks at the objects of masks alone, and at what is left without them."""

# K: present classes; S: masks; C: foreground classes; B: views; H, W: image.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pmm_ray.method.evidence import hidden, parts
from pmm_ray.nets.cam_network import CamNetwork, present_classes
from pmm_ray.nets.halving import in_halves
from pmm_ray.nets.views import normalise_views

# Views of one pass.
_TOGETHER = 16


@dataclass(frozen=True)
class Evidence:
    """Probabilities of an image's classes; see `method.evidence.lift`.

    Attributes:
        whole: of the image, float32 [K].
        hidden: of the hidden image, [K].
        object: of the object alone under each mask, [K, S].
        rest: of the rest alone, [K, S].
        area: masked share, [K, S], 0..1.
    """

    whole: NDArray[np.float32]
    hidden: NDArray[np.float32]
    object: NDArray[np.float32]
    rest: NDArray[np.float32]
    area: NDArray[np.float32]


def evidence(
    image_HW3: NDArray[np.uint8],
    masks: Sequence[NDArray[Any]],
    labels: Sequence[int],
    network: CamNetwork,
    device: torch.device,
) -> Evidence:
    """What the classifier makes of each class under each mask.

    Args:
        image_HW3: RGB, uint8 [H, W, 3].
        masks: S masks of ids, [H, W]; 0 is the background.
        labels: K present classes, ids from 1.
        network: in evaluation mode.
        device: where it is.
    """
    blurred = hidden(image_HW3)
    area_KS = np.empty((len(labels), len(masks)), np.float32)

    def views() -> Iterator[NDArray[np.uint8]]:
        yield from (image_HW3, blurred)
        for k, label in enumerate(labels):
            for s, mask_HW in enumerate(masks):
                inside_HW = mask_HW == label
                area_KS[k, s] = inside_HW.mean()
                yield from parts(image_HW3, blurred, inside_HW)

    found_BC = _probabilities(views(), labels, network, device)
    present_C = [label - 1 for label in labels]
    pairs_KS2 = found_BC[2:].reshape(len(labels), len(masks), 2, -1)
    of_class_KS2 = np.stack([pairs_KS2[k, :, :, c] for k, c in enumerate(present_C)])
    return Evidence(
        found_BC[0, present_C],
        found_BC[1, present_C],
        of_class_KS2[..., 0],
        of_class_KS2[..., 1],
        area_KS,
    )


@torch.inference_mode()
def _probabilities(
    views: Iterator[NDArray[np.uint8]],
    labels: Sequence[int],
    network: CamNetwork,
    device: torch.device,
) -> NDArray[np.float32]:
    """Of every class in views of one size, float32 [B, C]: the classes exclude no others."""
    present_C = present_classes(labels, network.num_foreground).to(device)
    found = []
    while together := list(islice(views, _TOGETHER)):  # a large grid has thousands
        pixels_B3HW = torch.from_numpy(np.stack(together)).to(device).permute(0, 3, 1, 2)
        batch = normalise_views(pixels_B3HW, network.input_mean, network.input_std)
        present_BC = present_C.expand(len(batch), -1)
        scores_BC = in_halves(network.image_scores, batch, present_BC)
        found.append(scores_BC.float().sigmoid().cpu().numpy())
    return np.concatenate(found)
