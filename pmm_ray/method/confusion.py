"""Exact, mergeable confusion matrices and the intersection over union they give."""

# C: classes with the background; rows are the truth, columns the prediction.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from latticecrf.checks import check_array

Confusion = npt.NDArray[np.int64]


def confusion_matrix(
    truth: npt.NDArray[np.integer[Any]],
    prediction: npt.NDArray[np.integer[Any]],
    num_classes: int,
    ignore: int,
) -> Confusion:
    """Count pixels by (true class, predicted class).

    Counts are integers: matrices of several images add up exactly, in any order.

    Args:
        truth: Class ids, integer, any shape; `ignore` where the truth is unknown.
        prediction: Class ids, integer, the shape of `truth`.
        num_classes: C, the background included, at least 1.
        ignore: The value of `truth` that is left out; predictions there do not matter.

    Returns:
        int64 [C, C], row = truth, column = prediction.

    Raises:
        ValueError: Shapes differ, or a counted id is outside 0..C-1.
    """
    return confusion_matrices(truth, [prediction], num_classes, ignore)[0]


def confusion_matrices(
    truth: npt.NDArray[np.integer[Any]],
    predictions: Sequence[npt.NDArray[np.integer[Any]]],
    num_classes: int,
    ignore: int,
) -> list[Confusion]:
    """`confusion_matrix` of several predictions, whose truth is prepared once.

    Raises:
        ValueError: as `confusion_matrix`.
    """
    axes = "HWXYZ"[: np.ndim(truth)]
    check_array("truth", truth, axes, kinds="iu")
    if num_classes < 1:
        raise ValueError(f"num_classes = {num_classes} is not at least 1")
    counted = truth != ignore
    everywhere = bool(counted.all())
    rows = (truth.ravel() if everywhere else truth[counted]).astype(np.int64)
    _check_ids("truth", rows, num_classes)
    rows *= num_classes
    matrices = []
    for prediction in predictions:
        check_array("prediction", prediction, axes, truth.shape, kinds="iu")
        columns = prediction.ravel() if everywhere else prediction[counted]
        _check_ids("prediction", columns, num_classes)
        counts = np.bincount(rows + columns.astype(np.int64), minlength=num_classes**2)
        matrices.append(counts.reshape(num_classes, num_classes).astype(np.int64))
    return matrices


def _check_ids(name: str, ids: npt.NDArray[np.integer[Any]], num_classes: int) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= num_classes):
        raise ValueError(
            f"{name} holds class ids {ids.min()}..{ids.max()}, outside 0..{num_classes - 1}"
        )


def count_pairs(
    truth: npt.NDArray[np.integer[Any]], prediction: npt.NDArray[np.integer[Any]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Confusion]:
    """Count pixels by (true value, predicted value), whatever the values mean.

    Args:
        truth: Integers 0..65535, any shape.
        prediction: Integers 0..65535, the shape of `truth`.

    Returns:
        True values, predicted values and counts of the pairs that occur, int64 [n] each.

    Raises:
        ValueError: Shapes or types differ from these.
    """
    axes = "HWXYZ"[: np.ndim(truth)]
    check_array("truth", truth, axes, kinds="iu")
    check_array("prediction", prediction, axes, truth.shape, kinds="iu")
    for name, values in (("truth", truth), ("prediction", prediction)):
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError(f"{name} holds values outside 0..65535")
    if truth.dtype == prediction.dtype == np.uint8:
        joint = np.bincount((truth.astype(np.uint16).ravel() << 8) | prediction.ravel())
        pairs = np.flatnonzero(joint)
        return pairs >> 8, pairs & 255, joint[pairs].astype(np.int64)
    # 65536 x 65536 bins would not fit: the pairs that occur are sorted out
    joint = (truth.astype(np.uint32).ravel() << 16) | prediction.astype(np.uint32).ravel()
    pairs, counts = np.unique(joint, return_counts=True)
    pairs = pairs.astype(np.int64)
    return pairs >> 16, pairs & 65535, counts.astype(np.int64)


def to_sparse(confusion: Confusion) -> tuple[npt.NDArray[np.int32], Confusion]:
    """The non-zero entries of a matrix, for one table row per image.

    Args:
        confusion: int64 [C, C].

    Returns:
        Flat indices (`truth * C + prediction`), int32 [n], ascending; counts, int64 [n].
    """
    _check_confusion(confusion)
    indices = np.flatnonzero(confusion)
    return indices.astype(np.int32), confusion.ravel()[indices]


def from_sparse(indices: npt.NDArray[np.int32], counts: Confusion, num_classes: int) -> Confusion:
    """The matrix that `to_sparse` gave; repeated indices add up, so images may be concatenated.

    Args:
        indices: Flat indices, integer [n], within 0..C*C-1.
        counts: Integer [n].
        num_classes: C.

    Raises:
        ValueError: Lengths differ or an index is out of range.
    """
    check_array("indices", indices, "n", kinds="iu")
    check_array("counts", counts, "n", indices.shape, kinds="iu")
    if indices.size and (indices.min() < 0 or indices.max() >= num_classes**2):
        raise ValueError(f"indices must be within 0..{num_classes**2 - 1}")
    confusion = np.zeros(num_classes**2, np.int64)
    np.add.at(confusion, indices, counts)
    return confusion.reshape(num_classes, num_classes)


def iou(confusion: Confusion) -> npt.NDArray[np.float64]:
    """Intersection over union of each class.

    Args:
        confusion: int64 [C, C].

    Returns:
        float64 [C], 0..1; NaN for a class without ground-truth pixels.
    """
    _check_confusion(confusion)
    intersection_C = np.diag(confusion)
    truth_C = confusion.sum(axis=1)
    union_C = truth_C + confusion.sum(axis=0) - intersection_C
    unknown_C = np.full(len(confusion), np.nan)
    return np.divide(intersection_C, union_C, out=unknown_C, where=truth_C > 0)


def mean_iou(confusion: Confusion) -> tuple[float, list[int]]:
    """Mean intersection over union over the classes that have ground truth.

    Args:
        confusion: int64 [C, C].

    Returns:
        The mean, 0..1 (NaN when no class has ground truth), and the ids of the classes left
        out because they have none, ascending.
    """
    iou_C = iou(confusion)
    absent_C = np.isnan(iou_C)
    mean = float(iou_C[~absent_C].mean()) if not absent_C.all() else float("nan")
    return mean, np.flatnonzero(absent_C).tolist()


NO_CLASS = "the truth holds no class, only background or the ignore value"
"""Why there is no `mean_score`."""


def mean_score(confusion: Confusion) -> float | None:
    """The mean IoU, 0..1, as a score; None: `NO_CLASS`.

    Of background alone it says nothing: the emptiest mask has 1.

    Args:
        confusion: int64 [C, C].
    """
    return mean_iou(confusion)[0] if confusion[1:].any() else None


def _check_confusion(confusion: object) -> None:
    matrix = check_array("confusion", confusion, "CC", kinds="iu")
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"confusion must be square, got shape {matrix.shape}")
