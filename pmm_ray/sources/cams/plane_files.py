"""Files of planes that others made, as they are: nothing here says what a plane means.

.npz            arrays by name; no pickle
.npy            a pickled dictionary, or one array, which is no pickle
ID_k.png        8-bit grey, a file per class; with `--layout per-class` also ID_k.npy
"""

# K: planes; h, w: as they are stored.

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.rows.images import decode_mask, read_file, read_header
from pmm_ray.sources.reading.names import has_ending
from pmm_ray.sources.reading.pickled import load_pickled_dict, read_npy_header

Kind = Literal["archive", "dictionary", "numbered", "array", "files"]
"""An `.npz`; a pickled dictionary with names, or with numbers; one array; a file per class."""
KINDS: dict[Kind, str] = {
    "archive": ".npz",
    "dictionary": ".npy",
    "numbered": ".npy, class -> map",
    "array": ".npy, one array",
    "files": "ID_k.png, grey",
}

# Values of one file for each pixel that a photograph may have: what a file may ask memory for.
MOST_VALUES_PER_PIXEL = 8
_NPY_HEAD_BYTES = 1 << 12
# how far the aspect of planes may be from the photograph's
_STRETCH = 0.1
_PNG_DEPTH_AT, _PNG_COLOUR_TYPE_AT, _PALETTE = 24, 25, 3


@dataclass(frozen=True)
class Content:
    """What a file holds, by name; of numbered planes by their numbers as text.

    Args:
        kind: of file.
        arrays: by name. An archive's are read when they are asked for.
    """

    kind: Kind
    arrays: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        return list(self.arrays)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]


class _Archive(Mapping[str, Any]):
    """The arrays of an `.npz` file, their declared sizes checked before memory is asked for."""

    def __init__(self, data: bytes, most_values: int) -> None:
        with _readable():
            self._file = np.load(io.BytesIO(data), allow_pickle=False)
            self._names = list(self._file.files)
        self._most = most_values

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        with _readable():
            with self._file.zip.open(f"{name}.npy") as stream:
                shape, _ = read_npy_header(stream)
            _check_values(name, shape, self._most)
            array: NDArray[Any] = self._file[name]
            return array


def read_content(
    uri: str, files: Mapping[int, str] | None, *, trust_pickle: bool, most_values: int
) -> Content:
    """Read one file, or all files of one image.

    Args:
        uri: `.npz` or `.npy`.
        files: of a file per class: by class number; None or empty: `uri` holds everything.
        trust_pickle: whether the user vouches for pickled `.npy` files.
        most_values: of one array; one that declares more is refused unread.

    Raises:
        RowError: `missing`, `too_large`, or `decode` with the file.
        ValueError: the content cannot be read.
    """
    if files:
        planes = {str(number): _plane(one, most_values) for number, one in sorted(files.items())}
        return Content("files", planes)
    data = _bytes(uri)
    if has_ending(uri, ".npz"):
        try:
            return Content("archive", _Archive(data, most_values))
        except ValueError as error:
            raise RowError("decode", str(error), uri) from error
    if not is_pickle(data[:_NPY_HEAD_BYTES]):
        return Content("array", {"": _bare(data, uri, most_values)})
    try:
        content = load_pickled_dict(uri, trust_pickle=trust_pickle, data=data)
    except CannotRunError as error:
        raise RowError("decode", str(error), uri) from error
    numbered = bool(content) and all(key.isdecimal() for key in content)
    return Content("numbered" if numbered or not content else "dictionary", content)


def is_pickle(head: bytes) -> bool:
    """Whether a `.npy` file with this beginning must be unpickled; False of one that is damaged."""
    try:
        return bool(read_npy_header(io.BytesIO(head))[1].hasobject)
    except Exception:  # whatever a damaged header raises is told when the file is read
        return False


def needs_trust(uri: str) -> bool:
    """Whether a file is a pickle, from its first bytes."""
    try:
        return has_ending(uri, ".npy") and is_pickle(storage.read_bytes(uri, _NPY_HEAD_BYTES))
    except OSError:
        return False


def _as_array(value: Any, what: str) -> NDArray[Any]:
    """An array, or a tensor of any device and type, as an array. Raises ValueError for others."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            # numpy has no bfloat16
            value = value.float() if "bfloat16" in str(value.dtype) else value
        return np.asarray(value)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{what} cannot be read as an array: {error}") from error


def floating(value: object, what: str) -> NDArray[Any]:
    """An array, or a tensor, as a floating array. Raises ValueError for any other."""
    array = _as_array(value, what)
    if array.dtype.kind != "f":
        raise ValueError(f"{what} is {array.dtype} {list(array.shape)}: floating is expected")
    return array


def numbers(keys: object) -> list[int]:
    """Class numbers as they are stored. Raises ValueError if they are none."""
    array = _as_array(keys, "keys")
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"keys are {array.dtype} {list(array.shape)}: integers [K] are expected")
    return [int(key) for key in array]


def stack(planes: Sequence[object]) -> NDArray[Any]:
    """Planes [h, w] of one shape as [K, h, w]; none at all as [0, 1, 1]."""
    arrays = [floating(plane, "a map") for plane in planes]
    if any(array.ndim != 2 for array in arrays):
        raise ValueError(f"the maps have the shapes {[list(a.shape) for a in arrays][:5]}")
    if len({array.shape for array in arrays}) > 1:
        raise ValueError("the maps of the dictionary have different shapes")
    return np.stack(arrays) if arrays else np.zeros((0, 1, 1), np.float32)


def check_aspect(
    stored: tuple[int, ...], photograph: Mapping[str, Any], what: str, *, squares: bool = False
) -> None:
    """Refuse planes of another shape than the photograph: turned, padded, or of another one.

    Args:
        stored: (height, width), px.
        photograph: its row of the manifest; its file is opened where the planes do not fit.
        what: the planes are called.
        squares: whether square planes fit any photograph, as networks make them whose input is.

    Raises:
        ValueError: they would be stretched.
    """
    (h, w), (height, width) = stored, (photograph["height"], photograph["width"])
    sizes = f"the {what} have {h} x {w} px, the photograph has {height} x {width}"
    if h != w and (h, w) == (width, height):
        advice = _by_exif(photograph, what) or "write them as [classes, height, width]"
        raise ValueError(f"{sizes}: they are turned; {advice}")
    if _stretch((h, w), (height, width)) and not (squares and h == w):
        fits_turned = not _stretch((h, w), (width, height))
        advice = (fits_turned and _by_exif(photograph, what)) or (
            "are they of this photograph, and not turned or padded?"
        )
        raise ValueError(f"{sizes}: one would be stretched to the other; {advice}")


def _stretch(stored: tuple[int, int], photograph: tuple[int, int]) -> bool:
    """Whether the aspect of planes is another than the photograph's."""
    (h, w), (height, width) = stored, photograph
    # a small plane's sides are rounded to whole pixels
    return abs(w * height / (h * width) - 1) > _STRETCH + 1 / h + 1 / w


def _by_exif(photograph: Mapping[str, Any], what: str) -> str:
    """What to do where EXIF data turns a photograph that counts as it is stored; else empty."""
    try:
        header = read_header(photograph.get("uri") or "", apply_exif=True)
    except RowError:
        return ""
    turned, stored = header.size, header.stored_size
    if turned == stored or stored != (photograph["height"], photograph["width"]):
        return ""
    return (
        f"EXIF data turns the photograph (orientation {header.orientation}), which counts as it is "
        f"stored: make the {what} of the stored pixels, or turn these (`magick mogrify "
        "-auto-orient FILE`)"
    )


def _plane(uri: str, most_values: int) -> NDArray[Any]:
    """The plane of one class, floating [h, w]; grey levels as 0..1."""
    data = _bytes(uri)
    if has_ending(uri, ".npy"):
        return _bare(data, uri, most_values)
    if data[_PNG_COLOUR_TYPE_AT : _PNG_COLOUR_TYPE_AT + 1] == bytes([_PALETTE]):
        raise RowError("decode", "an indexed PNG is a mask: a map is 8-bit grey", uri)
    try:
        grey = decode_mask(data, uri=uri)
    except ValueError as error:
        raise RowError("decode", f"{error}; a map is 8-bit grey", uri) from error
    return grey.astype(np.float32) / np.float32(2 ** data[_PNG_DEPTH_AT] - 1)


def _bare(data: bytes, uri: str, most_values: int) -> NDArray[Any]:
    """The one array of a `.npy` file that is no pickle."""
    stream = io.BytesIO(data)
    try:
        shape, _ = read_npy_header(stream)
        _check_values("the array", shape, most_values)
        stream.seek(0)
        array: NDArray[Any] = np.load(stream, allow_pickle=False)
    except RowError as error:
        raise RowError(error.kind, error.message, uri) from error
    except Exception as error:  # a damaged header raises nearly any type
        raise RowError("decode", f"not a readable .npy file: {error}", uri) from error
    return array


def _bytes(uri: str) -> bytes:
    data = read_file(uri)
    if stand_in := storage.stand_in(data):
        raise RowError("decode", stand_in, uri)
    return data


def _check_values(name: str, shape: tuple[int, ...], most: int) -> None:
    values = int(np.prod(shape, dtype=np.float64))
    if values > most:
        raise RowError("too_large", f"{name} declares {list(shape)}: {values} values are too many")


@contextmanager
def _readable() -> Iterator[None]:
    """Turns whatever a damaged archive raises into a ValueError."""
    try:
        yield
    except RowError:
        raise
    except Exception as error:  # a damaged zip archive raises nearly any type
        raise ValueError(f"not a readable .npz file: {error}") from error
