"""Dense CRF inference: `DenseCrf` for one image, `CrfParameters` for its numbers.

What needs Numba is imported on first use: `CrfParameters` alone costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latticecrf.parameters import CrfParameters

if TYPE_CHECKING:
    from latticecrf.dense_crf import DenseCrf
    from latticecrf.mean_field.merging import merge_weak_labels

__all__ = ["CrfParameters", "DenseCrf", "merge_weak_labels"]

_HOMES = {"DenseCrf": "latticecrf.dense_crf", "merge_weak_labels": "latticecrf.mean_field.merging"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
