"""Ground truth that cannot mean what its values say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.rows.images import decode_mask, read_file

# masks that are opened at an import: the first and last, and those between at equal steps
_LOOKED_INTO = 16


def check_truth_values(uris: Sequence[str], space: LabelSpace) -> str:
    """Refuse masks that say nothing but 0 and the ignore value, of images that have labels.

    Args:
        uris: masks of images with labels, any number: a few are opened.
        space: what their values mean.

    Returns:
        What to say of values that mean nothing; empty where there are none.

    Raises:
        CannotRunError: not one of them holds a class.
    """
    step = max(1, len(uris) // _LOOKED_INTO)
    values: set[int] = set()
    for uri in uris[::step][:_LOOKED_INTO]:
        try:
            values |= set(np.unique(decode_mask(read_file(uri), uri=uri)).tolist())
        # the stage that reads a mask makes an error row of what is wrong with it
        except (RowError, ValueError):
            continue
    if space.ignore in values and values <= {0, space.ignore}:
        raise CannotRunError(
            f"{uris[0]} and its like hold only 0 and {space.ignore}, and {space.ignore} means 'not "
            "labelled': save the class as 1 (its id), or leave the masks out"
        )
    strange = sorted(values - {*range(space.num_classes), space.ignore})
    if not strange:
        return ""
    return (
        f"masks hold {strange[:10]}, which are no classes: 0..{space.num_foreground} and "
        f"{space.ignore} are; such an image is not scored"
    )
