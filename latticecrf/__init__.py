"""Dense CRF inference: `DenseCrf` for one image, `CrfParameters` for its numbers.

What needs Numba is imported on first use: `CrfParameters` alone costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticecrf.parameters import CrfParameters

if TYPE_CHECKING:
    from latticecrf.dense_crf import DenseCrf
    from latticecrf.mean_field.merging import merge_weak_labels
    from latticecrf.presets import Preset

__all__ = ["CrfParameters", "DenseCrf", "Preset", "install", "merge_weak_labels"]

_HOMES = {
    "DenseCrf": "latticecrf.dense_crf",
    "Preset": "latticecrf.presets",
    "merge_weak_labels": "latticecrf.mean_field.merging",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def install() -> str:
    """Make `import pydensecrf` give `latticecrf.pydensecrf`; call it before that import.

    Processes that inherit `sys.path`, as those of `multiprocessing` do, import the same.

    Returns:
        The folder that is now on `sys.path`.
    """
    for name in ("", ".densecrf", ".utils"):
        sys.modules[f"pydensecrf{name}"] = import_module(f"latticecrf.pydensecrf{name}")
    folder = str(Path(__file__).parent / "shim")
    if folder not in sys.path:
        sys.path.insert(1, folder)
    return folder
