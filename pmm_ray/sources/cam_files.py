"""CAMs that others made: our cams table, `.npz` files, the pickled `.npy` files of the field.

    ID.npz   keys [K], cam [K, h, w], optionally size [H, W]
    ID.npy   SEAM, PMM: a dictionary class -> [H, W]
    ID.npy   IRN: a dictionary with keys [K], high_res [K, H, W] and cam [K, h, w]
    ID.npy   CLIP-ES: the same with attn_highres [K, H, W]

Classes count from 0 in these files (0 is the first foreground class); mask values and the table's
labels from 1. Scores are within 0..1.
"""

# K: classes of one file; H, W: photograph; h, w: a CAM of any size.

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.index import TableIndex, index_file, scan_parts
from pmm_ray.sources.names import ending_of, has_ending, safe_image_id, stem_path
from pmm_ray.sources.pickled import load_pickled_dict, read_npy_header, refusal

LAYOUTS = {
    "part-*.parquet": "our cams table",
    ".npz, `keys`, `cam`, optionally `size`": "any program; no pickle",
    ".npy, class -> map": "SEAM, PSA, PMM, EPS, MCTformer",
    ".npy, `keys`, `high_res` or `cam`": "IRN and its family",
    ".npy, `keys`, `attn_highres`": "CLIP-ES",
}
"""What a folder of CAMs may hold, and who writes it."""
SUFFIXES = (".npz", ".npy")
FILES = tables.columns(image_id=tables.TEXT, cam_uri=tables.TEXT)

# Resizing by cubic interpolation overshoots a little, which is clipped; a map that exceeds this was
# never normalized.
_HIGHEST = 1.5
# what a dictionary with `keys` calls its maps, the largest first
_MAPS = ("high_res", "attn_highres", "cam")
# planes whose sum differs from one by no more at nearly all pixels are shares of one
_SHARE_TOLERANCE, _SHARE_PIXELS = 0.01, 0.99
# Values of one file for each pixel that a photograph may have: what a file may ask memory for.
_MOST_VALUES_PER_PIXEL = 8


@dataclass(frozen=True)
class CamFolder:
    """The CAMs of a folder.

    `index` says where each image's CAM is: a row of the table, or a row that names a file.
    `fingerprint` changes when a file is added, removed or written again (sizes and times).
    `names` gives the path of each image's file without its ending; of a table, the id itself.
    `repeated` are files whose image has another file already, `left_out` are those that are no
    CAMs.
    """

    is_table: bool
    index: TableIndex
    fingerprint: str
    names: Mapping[str, str]
    repeated: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def find_cams(folder: str, listing: str, *, trust_pickle: bool) -> CamFolder:
    """Find the CAMs of a folder without reading them.

    Args:
        folder: holds `part-*.parquet` (our cams table), or `.npz` and `.npy` files.
        listing: Parquet file to write the list of files to; not written for a table.
        trust_pickle: whether the user vouches for `.npy` files.

    Raises:
        CannotRunError: no CAMs, a table with other columns or an unreadable part, or pickles
            that nobody vouched for.
    """
    folder = storage.absolute(folder)
    entries = storage.list_entries(folder, recursive=True)
    files = [entry.uri for entry in entries if not entry.fault]
    parts = [
        uri
        for uri in files
        if storage.parent(uri) == folder
        and uri.endswith(".parquet")
        and uri.rsplit("/", 1)[-1].startswith("part-")
    ]
    if parts:
        index = _index_table(folder, parts)
        return CamFolder(True, index, _fingerprint(parts), {i: i for i in index.image_ids})
    found = [uri for uri in files if has_ending(uri, SUFFIXES) and not _is_hidden(uri, folder)]
    if not found:
        raise CannotRunError(
            f"no CAMs in {folder}: part-*.parquet (a cams table), .npz or .npy files are expected"
        )
    pickles = [uri for uri in found if ending_of(uri) == ".npy"]
    if pickles and not trust_pickle:
        raise CannotRunError(refusal(pickles[0]))
    by_id: dict[str, str] = {}
    repeated = []
    for uri in found:
        image_id = safe_image_id(stem_path(uri, folder))
        if by_id.setdefault(image_id, uri) != uri:
            repeated.append(uri)
    rows = [{"image_id": image_id, "cam_uri": uri} for image_id, uri in sorted(by_id.items())]
    tables.write_rows(listing, rows, FILES)
    names = {image_id: stem_path(uri, folder) for image_id, uri in by_id.items()}
    used = set(found)
    left_out = [entry.uri for entry in entries if entry.uri not in used]
    return CamFolder(
        False, index_file(listing), _fingerprint(found), names, tuple(repeated), tuple(left_out)
    )


def _is_hidden(uri: str, folder: str) -> bool:
    return any(part.startswith(".") for part in uri.removeprefix(folder + "/").split("/"))


def _index_table(folder: str, parts: list[str]) -> TableIndex:
    index, broken = scan_parts(folder)
    if broken:
        raise CannotRunError(
            f"{broken[0]} is not a readable part of a cams table: make it again, or move it away"
        )
    for uri in parts:
        filesystem, path = storage.resolve(uri)
        names = set(pq.read_schema(path, filesystem=filesystem).names)
        if not names >= set(tables.CAMS.names):
            lacking = ", ".join(sorted(set(tables.CAMS.names) - names))
            raise CannotRunError(f"{uri} is no part of a cams table: it lacks {lacking}")
    return index


def _fingerprint(uris: list[str]) -> str:
    return storage.fingerprint({uri: uri.rsplit("/", 1)[-1] for uri in uris})


@dataclass(frozen=True)
class Cam:
    """What one file or row holds: labels from 1, floating [K, h, w], and the photograph's size."""

    labels: list[int]
    scores: NDArray[Any]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class CamReader:
    """Reads and checks the CAM of a joined row; small and picklable.

    Attributes:
        num_foreground: the highest label that the masks can hold.
        trust_pickle: whether the user vouches for `.npy` files.
        max_pixels: of a photograph; larger CAMs are refused before they are read.
    """

    num_foreground: int
    trust_pickle: bool
    max_pixels: int

    def __call__(self, row: Mapping[str, Mapping[str, Any]]) -> tuple[list[int], NDArray[Any]]:
        """Labels and CAM, floating [K, h, w], of those classes that the manifest's labels allow.

        A manifest row without labels allows every class.

        Raises:
            RowError: `missing`, `decode`, `label`, `nonfinite` or `too_large`, with the file.
        """
        manifest, source = row["manifest"], row["cams"]
        with _naming(source):
            cam = self._read(source)
            self._check(cam, (manifest["height"], manifest["width"]))
            return self._allowed(cam, manifest["labels"] or [])

    def labels(self, source: Mapping[str, Any]) -> list[int]:
        """The classes of a row of `CamFolder.index`. Raises RowError as above."""
        with _naming(source):
            return self._read(source).labels

    def _read(self, source: Mapping[str, Any]) -> Cam:
        uri = source.get("cam_uri")
        if uri is None:
            return _read_row(source)
        return _read_file(uri, self.trust_pickle, self.max_pixels * _MOST_VALUES_PER_PIXEL)

    def _check(self, cam: Cam, photograph: tuple[int, int]) -> None:
        scores = cam.scores
        if scores.dtype.kind != "f" or scores.ndim != 3 or len(scores) != len(cam.labels):
            raise ValueError(
                f"the CAM is {scores.dtype} {list(scores.shape)} for {len(cam.labels)} classes: "
                "floating [K, h, w] with one map per class is expected"
            )
        if 0 in scores.shape[1:]:
            raise ValueError(f"the CAM's maps are empty: {list(scores.shape)}")
        if cam.size is not None and cam.size != photograph:
            raise ValueError(
                f"the CAM was made for {cam.size[0]} x {cam.size[1]} px, the photograph has "
                f"{photograph[0]} x {photograph[1]}"
            )
        if len(set(cam.labels)) < len(cam.labels):
            raise RowError("label", f"classes occur twice: {sorted(cam.labels)}")
        if min(cam.labels, default=1) < 1:
            raise RowError("label", "the CAM names a class below the first")
        if not np.isfinite(scores).all():
            raise RowError("nonfinite", "the CAM holds NaN or infinity")
        if _are_shares(scores) and (len(cam.labels) > 1 or cam.labels == [1]):
            raise RowError(
                "label",
                f"the planes of classes {[label - 1 for label in cam.labels]} add up to one: they "
                "are scores with a background plane (SEAM, PSA and EPS write such after the CRF), "
                "not CAMs; give the CAMs from before it",
            )
        if scores.size and float(scores.max()) > _HIGHEST:
            raise ValueError(f"scores reach {float(scores.max()):g}: normalize each map to 0..1")

    def _allowed(self, cam: Cam, wanted: list[int]) -> tuple[list[int], NDArray[Any]]:
        lacking = sorted(set(wanted) - set(cam.labels))
        if lacking:
            raise RowError(
                "label",
                f"the labels say class {lacking}, but the CAM has {sorted(cam.labels)}; "
                "are the classes in the order of the CAM's numbers?",
            )
        kept = [k for k, label in enumerate(cam.labels) if not wanted or label in wanted]
        labels = [cam.labels[k] for k in kept]
        if max(labels, default=0) > self.num_foreground:
            raise RowError(
                "label",
                f"the CAM has class {max(labels)}, the last known one is {self.num_foreground}: "
                "name all classes (docs/guides/bring-your-own-cams.md)",
            )
        return labels, cam.scores[kept]


def _are_shares(scores: NDArray[Any]) -> bool:
    """Whether the planes, [K, h, w], add up to one: no CAM does, each has a maximum of its own."""
    if len(scores) == 0 or scores[0].size < 2:
        return False
    total = scores.sum(axis=0, dtype=np.float32)
    return bool((np.abs(total - 1) < _SHARE_TOLERANCE).mean() >= _SHARE_PIXELS)


@contextmanager
def _naming(source: Mapping[str, Any]) -> Iterator[None]:
    """Turns what is wrong with a CAM into a RowError that names its file."""
    uri = source.get("cam_uri") or ""
    try:
        yield
    except RowError as error:
        raise RowError(error.kind, error.message, error.uri or uri) from error
    except ValueError as error:
        raise RowError("decode", str(error), uri) from error


def _read_row(row: Mapping[str, Any]) -> Cam:
    labels = [int(label) for label in row["labels"] or ()]
    height, width, data = row["cam_height"], row["cam_width"], row["cam"]
    if None in (height, width, data) or len(data) != 2 * len(labels) * height * width:
        raise ValueError(
            f"the row's CAM does not hold {len(labels)} maps of {height} x {width} float16"
        )
    scores = np.frombuffer(data, "<f2").reshape(len(labels), height, width)
    return Cam(labels, scores, (row["height"], row["width"]))


def _read_file(uri: str, trust_pickle: bool, most_values: int) -> Cam:
    try:
        if has_ending(uri, ".npz"):
            return _read_npz(storage.read_bytes(uri), most_values)
        content = load_pickled_dict(uri, trust_pickle=trust_pickle)
    except FileNotFoundError as error:
        raise RowError("missing", "the CAM's file does not exist", uri) from error
    except OSError as error:
        raise RowError("missing", f"the CAM's file cannot be read: {error}", uri) from error
    except CannotRunError as error:
        raise RowError("decode", str(error), uri) from error
    if "keys" in content:
        scores = next((content[name] for name in _MAPS if content.get(name) is not None), None)
        if scores is None:
            raise ValueError(f"the dictionary has keys, but none of {', '.join(_MAPS)}")
        return Cam(_labels(content["keys"]), _array(scores))
    if not all(key.isdecimal() for key in content):
        raise ValueError(
            f"the dictionary's keys are {sorted(content)[:5]}: class numbers (SEAM, PMM), or "
            "keys, cam and high_res (IRN) are expected"
        )
    maps = [_array(value) for value in content.values()]
    if len({plane.shape for plane in maps}) > 1:
        raise ValueError("the maps of the dictionary have different shapes")
    scores = np.stack(maps) if maps else np.zeros((0, 1, 1), np.float32)
    return Cam([int(key) + 1 for key in content], scores)


def _read_npz(data: bytes, most_values: int) -> Cam:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            for name in ("keys", "cam"):
                if name not in file.files:
                    raise ValueError(f"it holds {file.files}: keys and cam are expected")
            arrays = {
                name: _member(file, name, most_values)
                for name in ("keys", "cam", "size")
                if name in file.files
            }
    except RowError:
        raise
    except Exception as error:  # a damaged zip archive raises nearly any type
        raise ValueError(f"not a readable .npz file: {error}") from error
    size = arrays.get("size")
    if size is not None and (size.shape != (2,) or size.dtype.kind not in "iu"):
        raise ValueError(f"size is {size.dtype} {list(size.shape)}: [height, width] is expected")
    labels = _labels(arrays["keys"])
    return Cam(labels, arrays["cam"], None if size is None else (int(size[0]), int(size[1])))


def _member(file: Any, name: str, most_values: int) -> NDArray[Any]:
    """One array of the archive, its declared size checked before memory is asked for."""
    with file.zip.open(f"{name}.npy") as stream:
        shape, _ = read_npy_header(stream)
    values = int(np.prod(shape, dtype=np.float64))
    if values > most_values:
        raise RowError("too_large", f"{name} declares {list(shape)}: {values} values are too many")
    array: NDArray[Any] = file[name]
    return array


def _array(value: object) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind != "f":
        raise ValueError(f"a map is {array.dtype} {list(array.shape)}: floating is expected")
    return array


def _labels(keys: object) -> list[int]:
    array = np.asarray(keys)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"keys are {array.dtype} {list(array.shape)}: integers [K] are expected")
    return [int(key) + 1 for key in array]
