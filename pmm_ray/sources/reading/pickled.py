"""Reading the pickled `.npy` dictionaries of the field, without the power of pickle.

A pickle can run any code when it is loaded. Two fences: the user must say that the file is
trusted, and even then only numpy arrays, torch tensors, dictionaries, lists, strings and numbers
are admitted.
"""

from __future__ import annotations

import io
import pickle
from typing import IO, Any

import numpy as np

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.reading.noted import note

# everything numpy's own pickles of arrays name; none of these can reach a file or a process
_ADMITTED = {
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "collections": {"OrderedDict"},
    "torch._utils": {"_rebuild_tensor_v2"},
}


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`, by which protocol 2 spells the bytes of an array."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _tensor_bytes(data: bytes) -> Any:
    """Stands for `torch.storage._load_from_bytes`, which would unpickle without any fence."""
    import torch  # only a file with tensors needs it: a CRF process starts without

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1_bytes
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _tensor_bytes
        if name not in _ADMITTED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")
        # older files name numpy's modules as they were called before numpy 2
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def refusal(uri: str) -> str:
    """What a user is told whose pickle is not loaded."""
    return (
        f"{uri} is a Python pickle, and a pickle can run code when it is loaded. If you trust "
        "its origin, say so with --trust-pickle (in a recipe: data.trust_pickle: true)."
    )


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the array of a `.npy` file, which follows in the stream."""
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(stream)]
    shape, _, dtype = read_header(stream)
    return shape, dtype


def load_pickled_dict(uri: str, *, trust_pickle: bool, data: bytes | None = None) -> dict[str, Any]:
    """The dictionary in a `.npy` file that `np.save(path, some_dict)` wrote.

    Args:
        trust_pickle: whether the user vouches for the file.
        data: the file's bytes; None: they are read.

    Returns:
        Keys are strings; values as stored.

    Raises:
        CannotRunError: not trusted, not such a file, or a file that asks for more than arrays.
    """
    if not trust_pickle:
        raise CannotRunError(refusal(uri))
    note(uri)
    stream = io.BytesIO(storage.read_bytes(uri) if data is None else data)
    try:
        shape, dtype = read_npy_header(stream)
        if shape != () or dtype != np.dtype(object):
            raise ValueError(f"it holds an array {shape} of {dtype}")
        # latin1 reads what numpy wrote under Python 2, too
        content = _Unpickler(stream, encoding="latin1").load()
    # a damaged pickle raises nearly any type
    except Exception as error:
        raise CannotRunError(f"{uri} is not a pickled dictionary of arrays: {error}") from error
    if isinstance(content, np.ndarray) and content.shape == ():
        content = content.item()
    if not isinstance(content, dict):
        raise CannotRunError(f"{uri} holds a {type(content).__name__}, not a dictionary")
    return {str(key): value for key, value in content.items()}
