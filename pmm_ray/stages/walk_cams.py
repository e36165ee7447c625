"""CAMs + affinities -> CAMs after a random walk (AffinityNet): a cams table with two more columns.

A walk has scores for the background too, which are kept. Each class's map is divided by its largest
score, so that it is 0..1 like all CAMs. That score is kept too: it gives back the walked scores.
"""

# K: present classes; M: K and the background; h, w: feature px; D: directions.

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmm_ray.config import AffinityConfig, WalkConfig
from pmm_ray.method.affinity import pair_affinities
from pmm_ray.method.masks import background_score
from pmm_ray.method.random_walk import averaged, random_walk
from pmm_ray.nets.affinity import AffinityNetwork, load_affinity
from pmm_ray.nets.transfer import OnTheWay, staged
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.index import TableIndex, read_index
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.overlap import Overlapped, one_by_one
from pmm_ray.runtime.mapping.table_stage import actor_pool, run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker
from pmm_ray.runtime.rows.cams import cam_at, cam_row
from pmm_ray.runtime.rows.photographs import Photographs, with_long_side

STAGE = "walk_cams"
CODE_VERSION = 1
WALKED = pa.schema(
    [
        *tables.CAMS,
        # float16 [h, w] like `cam`, and the score that each class's map was divided by
        ("background", pa.large_binary()),
        ("peaks", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class WalkInput:
    """An image before its walk.

    Attributes:
        scores: of the background and the classes, float32 [M, H, W], 0..1.
        pixels: RGB, uint8 [3, H, W], on the CPU; at most `walk.max_long`.
    """

    scores: NDArray[np.float32]
    pixels: Tensor

    @classmethod
    def of(
        cls,
        image_HW3: NDArray[np.uint8],
        cam_KHW: NDArray[np.float32],
        config: WalkConfig,
        device: torch.device,
    ) -> WalkInput:
        """An image, RGB uint8, with its CAM of the same size, 0..1; the network is on `device`."""
        scores_MHW = np.concatenate([background_score(cam_KHW, config.alpha)[None], cam_KHW])
        if max(image_HW3.shape[:2]) > config.max_long:
            image_HW3 = with_long_side(image_HW3, config.max_long)
        return cls(scores_MHW, staged(np.ascontiguousarray(image_HW3.transpose(2, 0, 1)), device))


@torch.inference_mode()
def affinities(
    subject: WalkInput, network: AffinityNetwork, radius: int, device: torch.device
) -> OnTheWay:
    """Affinities of the pairs of an image, float32 [D, h, w], see `pair_affinities`.

    Args:
        network: on `device`, in evaluation mode.
        radius: the pairs that it was trained on, see `method.affinity.directions`.
        device: where the network is.

    Source: released code of AffinityNet; it takes the image at its own size.
    """
    pixels = subject.pixels.to(device, non_blocking=True)[None]
    features = network(normalise_views(pixels, network.input_mean, network.input_std))
    return OnTheWay(pair_affinities(features, radius)[0])


def walked(
    subject: WalkInput, affinity_Dhw: NDArray[np.float32], radius: int, config: WalkConfig
) -> NDArray[np.float32]:
    """Scores of the background and the classes after the walk, float32 [K + 1, h, w], 0..1.

    Args:
        affinity_Dhw: from `affinities`, with the same radius.
        config: exponents and steps of the walk.

    Raises:
        RowError: `nonfinite`.

    Source: released code of AffinityNet (scores averaged over the px of a feature).
    """
    if not np.isfinite(affinity_Dhw).all():
        raise RowError("nonfinite", "the affinity network's features are not finite")
    return random_walk(
        averaged(subject.scores, *affinity_Dhw.shape[1:]),
        affinity_Dhw,
        radius,
        beta=config.beta,
        log_steps=config.log_steps,
    )


def walk_worker(
    checkpoint_uri: str, config: AffinityConfig, photographs: Photographs, use_gpu: bool
) -> Worker:
    """Makes the worker of one pool process; loads the network once."""
    device = torch.device("cuda" if use_gpu else "cpu")
    network, _ = load_affinity(checkpoint_uri)
    network = network.to(device).eval()

    def prepare(row: InputRow) -> WalkInput:
        image = photographs.image(row["manifest"])
        _, cam_KHW = cam_at(image.shape[:2], row)
        return WalkInput.of(image, cam_KHW, config.walk, device)

    def see(subject: WalkInput) -> tuple[WalkInput, OnTheWay]:
        return subject, affinities(subject, network, config.radius, device)

    def finish(row: InputRow, seen: tuple[WalkInput, OnTheWay]) -> dict[str, Any]:
        subject, on_the_way = seen
        (affinity_Dhw,) = on_the_way.arrays()
        scores_Mhw = walked(subject, affinity_Dhw, config.radius, config.walk)
        peaks_K = scores_Mhw[1:].max(axis=(1, 2))
        cam_Khw = scores_Mhw[1:] / np.where(peaks_K > 0, peaks_K, 1)[:, None, None]
        labels = row["cams"]["labels"]
        return cam_row(row["manifest"] | {"labels": labels}, cam_Khw) | {
            "background": scores_Mhw[0].astype("<f2").tobytes(),
            "peaks": peaks_K.tolist(),
        }

    return Overlapped(STAGE, prepare, one_by_one(see), finish)


def run(
    config: AffinityConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    cams: TableIndex,
    checkpoint_uri: str,
) -> Summary:
    """Walked CAMs of every image of `cams`, an index of a cams table."""
    on_gpu = context.cluster.gpus >= 1
    walk = config.walk
    return run_table_stage(
        context,
        folder,
        inputs={"cams": cams},
        factory=partial(walk_worker, checkpoint_uri, config, Photographs.of(context), on_gpu),
        schema=WALKED,
        pool=actor_pool(context, walk),
        batch_size=walk.batch_size,
    )


def stage(config: AffinityConfig, cams: StageFolder, network: StageFolder) -> Stage:
    """The walk on finished maps by a trained affinity network."""
    index = read_index(cams.uri)
    model = network.path("model.pt")
    return Stage(
        STAGE,
        (config.walk, network.result, cams.hash, CODE_VERSION),
        partial(run, config, cams=index, checkpoint_uri=model),
        images=index.ids,
    )
