"""CAMs that others made, read and checked: of a cams table of ours, or files of `cam_layouts`.

Labels count from 1, whatever files count from. Scores are within 0..1, or are brought there.
"""

# K: classes of one file; h, w: a CAM of any size.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.labels import COCO14
from pmm_ray.method.cams import normalize
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.sources.cams.cam_layouts import UNREAD, Planes, Reading, read_planes
from pmm_ray.sources.cams.plane_files import MOST_VALUES_PER_PIXEL, check_aspect, read_content
from pmm_ray.sources.cams.said import ClassIds, Normalize
from pmm_ray.sources.cams.score_values import are_shares

TABLE = "table"
"""The layout of a cams table of ours."""
# Resizing by cubic interpolation overshoots a little, which is clipped; a map that exceeds this was
# never normalized. SEAM stores slightly negative scores.
_LOWEST, HIGHEST = -0.5, 1.5


@dataclass(frozen=True)
class CamReader:
    """Reads and checks the CAM of a joined row; small and picklable.

    Attributes:
        dataset_ids: id of each class in the class list, the background's first; the masks can hold
            as many labels as there are.
        trust_pickle: whether the user vouches for `.npy` files.
        max_pixels: of a photograph; larger CAMs are refused before they are read.
        reading: what is known of the files.
    """

    dataset_ids: Sequence[int]
    trust_pickle: bool
    max_pixels: int
    reading: Reading = UNREAD

    def __call__(self, row: Mapping[str, Mapping[str, Any]]) -> tuple[list[int], NDArray[Any]]:
        """Labels and CAM, floating [K, h, w], of those classes that the manifest's labels allow.

        A manifest row without labels allows every class.

        Raises:
            RowError: `missing`, `decode`, `label`, `nonfinite` or `too_large`, with the file.
        """
        manifest, source = row["manifest"], row["cams"]
        with naming_file(source):
            cam = self._read(source)
            self._check(cam, manifest)
            labels, scores = self._allowed(cam, manifest["labels"] or [])
            return labels, self._in_range(replace(cam, scores=scores))

    def peek(self, source: Mapping[str, Any]) -> tuple[Planes, str]:
        """What a row of `CamFolder.index` holds, and what is wrong with its range, if it is.

        Raises RowError as above.
        """
        with naming_file(source):
            planes = self._read(source)
            fault = ""
            try:
                self._in_range(planes)
            except ValueError as error:
                fault = str(error)
            return planes, fault

    def _in_range(self, cam: Planes) -> NDArray[Any]:
        """The scores within 0..1. Raises ValueError of others, and where none is above 0."""
        scores = _normalized(cam.scores, self.reading.normalize)
        if not scores.size:
            return scores
        low, high = float(scores.min()), float(scores.max())
        if low < _LOWEST or high > HIGHEST:
            raise ValueError(
                f"scores are {low:g} to {high:g}: normalize each map to 0..1, with --normalize "
                "max or minmax"
            )
        # a classifier of ours may see nothing in a photograph
        if high <= 0 and cam.layout != TABLE:
            raise ValueError(
                f"scores are {low:g} to {high:g}: where none is above 0, the mask would be "
                "background alone"
            )
        return scores

    def _read(self, source: Mapping[str, Any]) -> Planes:
        uri = source.get("cam_uri")
        if uri is None:
            return _read_row(source)
        files = dict(zip(source.get("classes") or (), source.get("class_uris") or (), strict=True))
        most = self.max_pixels * MOST_VALUES_PER_PIXEL
        content = read_content(uri, files, trust_pickle=self.trust_pickle, most_values=most)
        planes = read_planes(content, self.reading)
        labels = to_contiguous(planes.labels, self.reading.class_ids, self.dataset_ids)
        return replace(planes, labels=labels)

    def _check(self, cam: Planes, photograph: Mapping[str, Any]) -> None:
        scores, size = cam.scores, (photograph["height"], photograph["width"])
        if scores.dtype.kind != "f" or scores.ndim != 3 or len(scores) != len(cam.labels):
            raise ValueError(
                f"the CAM is {scores.dtype} {list(scores.shape)} for {len(cam.labels)} classes: "
                "floating [K, h, w] with one map per class is expected"
            )
        if 0 in scores.shape[1:]:
            raise ValueError(f"the CAM's maps are empty: {list(scores.shape)}")
        if cam.size is not None and cam.size != size:
            raise ValueError(
                f"the CAM was made for {cam.size[0]} x {cam.size[1]} px, the photograph has "
                f"{size[0]} x {size[1]}"
            )
        check_aspect(scores.shape[1:], photograph, "maps", squares=True)
        if len(set(cam.labels)) < len(cam.labels):
            raise RowError("label", f"classes occur twice: {sorted(cam.labels)}")
        if min(cam.labels, default=1) < 1:
            raise RowError("label", "the CAM names a class below the first")
        if not np.isfinite(scores).all():
            raise RowError("nonfinite", "the CAM holds NaN or infinity")
        if adds_up(cam):
            raise RowError(
                "label",
                f"the planes of classes {cam.numbers} add up to one: they {SHARES}",
            )

    def _allowed(self, cam: Planes, wanted: list[int]) -> tuple[list[int], NDArray[Any]]:
        lacking = sorted(set(wanted) - set(cam.labels))
        if lacking:
            raise RowError(
                "label",
                f"the labels say class {lacking}, but the CAM has {sorted(cam.labels)}; "
                "are the classes in the order of the CAM's numbers?",
            )
        kept = [k for k, label in enumerate(cam.labels) if not wanted or label in wanted]
        labels = [cam.labels[k] for k in kept]
        last = len(self.dataset_ids) - 1
        if max(labels, default=0) > last:
            raise RowError(
                "label",
                f"the CAM has class {max(labels)}, the last known one is {last}: name all classes "
                "(docs/guides/bring-your-own-cams.md), or say --first-class 1 if its numbers count "
                "from 1, --class-ids coco90 if they are COCO's, dataset if the class list's values",
            )
        return labels, cam.scores[kept]


SHARES = (
    "are scores with a background plane (SEAM, PSA and EPS write such after the CRF), not CAMs: "
    "give the CAMs from before it, or the scores to `pmm refine --scores`; if the other planes are "
    "to serve as CAMs, say --background-channel"
)
"""What planes are that add up to one."""


def adds_up(cam: Planes) -> bool:
    """Whether the planes add up to one: no CAM's do, each has a maximum of its own."""
    several = len(cam.labels) > 1 or cam.numbers == [0]
    return several and not cam.sure and cam.layout != TABLE and are_shares(cam.scores)


def _normalized(scores_Khw: NDArray[Any], how: Normalize) -> NDArray[Any]:
    """Each map brought to 0..1, float32; as it is where `how` is `none`."""
    if how == "none" or not scores_Khw.size:
        return scores_Khw
    if how == "minmax":
        return normalize(scores_Khw)
    # as the programs do, which apply a ReLU first
    positive = np.maximum(scores_Khw, 0)
    highest = positive.max(axis=(1, 2), keepdims=True).astype(np.float32)
    return positive / np.where(highest > 0, highest, np.float32(1))


def to_contiguous(labels: list[int], class_ids: ClassIds, dataset_ids: Sequence[int]) -> list[int]:
    """Contiguous labels of COCO's ids or the class list's; 0 stays, as do labels without gaps.

    Raises:
        RowError: `label`, of other ids.
    """
    if class_ids not in ("coco90", "dataset"):
        return labels
    coco = class_ids == "coco90"
    ids = COCO14.dataset_ids if coco else dataset_ids
    strange = sorted(set(labels) - set(ids))
    if strange:
        text = "ids of COCO, whose classes have 80 of 1..90"
        raise RowError(
            "label",
            f"{strange} are no {text if coco else f'values of the class list: {list(ids)[:12]}'}",
        )
    return [ids.index(label) for label in labels]


def told_ids(seen: Set[int], dataset_ids: Sequence[int]) -> ClassIds:
    """Which of the two numbers from 1 are: `dataset` or `contiguous`; `auto`: either."""
    if not seen <= set(dataset_ids):
        return "contiguous"
    if not seen <= set(range(len(dataset_ids))):
        return "dataset"
    return "auto" if any(dataset_ids[k] != k for k in seen) else "contiguous"


@contextmanager
def naming_file(source: Mapping[str, Any]) -> Iterator[None]:
    """Turns what is wrong with a file of planes into a RowError that names it."""
    uri = source.get("cam_uri") or ""
    try:
        yield
    except RowError as error:
        raise RowError(error.kind, error.message, error.uri or uri) from error
    except ValueError as error:
        raise RowError("decode", str(error), uri) from error


def _read_row(row: Mapping[str, Any]) -> Planes:
    labels = [int(label) for label in row["labels"] or ()]
    height, width, data = row["cam_height"], row["cam_width"], row["cam"]
    if None in (height, width, data) or len(data) != 2 * len(labels) * height * width:
        raise ValueError(
            f"the row's CAM does not hold {len(labels)} maps of {height} x {width} float16"
        )
    scores = np.frombuffer(data, "<f2").reshape(len(labels), height, width)
    return Planes(TABLE, "cam", labels, scores, labels, True, (row["height"], row["width"]))
