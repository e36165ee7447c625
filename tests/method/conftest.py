"""The shared photographs, for the tests that need them; those skip where they are absent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from latticecrf.checks import Float32Array
from pmm_ray.method.cams import upsample_cam


@dataclass(frozen=True)
class OracleImage:
    """One photograph with the CAM of an independent classifier and the masks they must give."""

    image: npt.NDArray[np.uint8]  # [H, W, 3], RGB
    cam: Float32Array  # [K, H, W]
    labels: list[int]
    mask: npt.NDArray[np.uint8]  # [H, W], with smoothing
    mask_without_smoothing: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Oracle:
    """The shared oracle folder."""

    folder: Path

    def ids(self) -> list[str]:
        """The image ids, sorted."""
        return sorted(path.stem for path in (self.folder / "oracle/cams").glob("*.npz"))

    def near_threshold(self) -> dict[str, float]:
        """Share of each image's pixels whose oracle posterior is within 0.5 +- 0.01."""
        near = json.loads((self.folder / "oracle/ppmg_near.json").read_text())
        return {image_id: entry["near_frac"] for image_id, entry in near.items()}

    def load(self, image_id: str) -> OracleImage:
        """Read one image, its CAM and its masks."""
        photographs = self.folder / "voc12-mini/VOCdevkit/VOC2012/JPEGImages"
        stored = np.load(self.folder / f"oracle/cams/{image_id}.npz", allow_pickle=False)
        height, width = (int(side) for side in stored["size"])
        return OracleImage(
            image=_read(photographs / f"{image_id}.jpg", cv2.IMREAD_COLOR)[..., ::-1],
            cam=upsample_cam(stored["cam"], height, width),
            labels=[int(key) + 1 for key in stored["keys"]],
            mask=_read(self.folder / f"oracle/ppmg/{image_id}.png", cv2.IMREAD_GRAYSCALE),
            mask_without_smoothing=_read(
                self.folder / f"oracle/ppmg_nocvs/{image_id}.png", cv2.IMREAD_GRAYSCALE
            ),
        )


def _read(path: Path, flags: int) -> npt.NDArray[np.uint8]:
    pixels = cv2.imread(str(path), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    assert pixels is not None, path
    return pixels.astype(np.uint8)


@pytest.fixture(scope="session")
def oracle(shared: Path) -> Oracle:
    """The oracle; skips the test where the shared photographs are absent."""
    return Oracle(shared / "data")
