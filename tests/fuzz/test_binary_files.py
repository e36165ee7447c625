"""Photographs, masks, CAMs and Parquet files after accidents: an error of ours, or the content."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from PIL import Image

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.rows.images import decode_mask, decode_rgb, image_header
from pmm_ray.sources.cams.cam_files import find_cams
from pmm_ray.sources.cams.cam_reader import CamReader
from pmm_ray.sources.datasets.parquet import import_parquet
from pmm_ray.sources.datasets.sbd import read_sbd_mask
from pmm_ray.sources.masks.mask_files import find_masks

from .mutations import alone, damaged, fuzz, ours

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
KINDS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")


def encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


PHOTOGRAPHS = [encoded(Image.fromarray(PIXELS), kind) for kind in KINDS]
MASKS = [
    encoded(Image.fromarray(PIXELS[..., 0] % 5), "PNG"),
    encoded(Image.fromarray(PIXELS[..., 0] % 5).convert("P"), "PNG"),
    encoded(Image.fromarray((PIXELS[..., 0] % 2).astype(bool)), "PNG"),
    encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 9), "PNG"),
]


def saved(content: Any, kind: str = "npy") -> bytes:
    out = io.BytesIO()
    if kind == "npz":
        np.savez(out, **content)
    else:
        np.save(out, content)
    return out.getvalue()


CAM = RNG.random((2, 3, 4)).astype(np.float32)
CAMS = {
    "npz": [saved({"keys": np.array([0, 4]), "cam": CAM, "size": np.array([12, 16])}, "npz")],
    "npy": [
        saved({0: CAM[0], 4: CAM[1]}),
        saved({"keys": np.array([0, 4]), "cam": CAM, "high_res": CAM}),
        saved({"keys": np.array([0, 4]), "attn_highres": CAM.astype(np.float16)}),
    ],
}


def parquet() -> bytes:
    images = [{"bytes": data, "path": "a.jpg"} for data in PHOTOGRAPHS[:2]]
    table = pa.table({"image": images, "labels": [[0, 1, 0], [1, 0, 1]], "image_id": ["a", None]})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


@fuzz
@given(damaged(PHOTOGRAPHS))
def test_photographs(data: bytes) -> None:
    for apply_exif in (False, True):
        most = {"apply_exif": apply_exif, "max_pixels": 10**6}
        header = ours(lambda most=most: image_header(data, **most), RowError)
        image = ours(lambda most=most: decode_rgb(data, **most), RowError)
        assert image is None or (image.dtype == np.uint8 and image.shape == (*header.size, 3))


@fuzz
@given(damaged(MASKS))
def test_masks(data: bytes) -> None:
    mask = ours(lambda: decode_mask(data), RowError, ValueError)
    assert mask is None or mask.ndim == 2


@pytest.mark.parametrize("kind", CAMS)
def test_cams(kind: str) -> None:
    @fuzz
    @given(damaged(CAMS[kind]))
    def read(data: bytes) -> None:
        with alone(f"a.{kind}", data) as path:
            listing = f"{path.parent}/listing.parquet"
            found = find_cams(str(path.parent), listing, trust_pickle=True)
            [(uri, row)] = found.index.locations().values()
            manifest = {"height": 12, "width": 16, "labels": []}
            joined = {"manifest": manifest, "cams": tables.read_rows(uri, [row])[0]}
            cam = ours(lambda: CamReader(range(21), True, 10**6)(joined), RowError)
            assert cam is None or len(cam[0]) == len(cam[1])

    read()


@fuzz
@given(damaged([parquet()]))
def test_parquet_files(data: bytes) -> None:
    with alone("train.parquet", data) as path:
        report = ours(lambda: import_parquet(str(path.parent), f"{path.parent}/out"))
        assert report is None or report.accounting.found == 2


@fuzz
@given(damaged([parquet()]))
def test_mask_tables(data: bytes) -> None:
    with alone("masks.parquet", data) as path:
        ours(lambda: find_masks(str(path), f"{path.parent}/listing.parquet"))


@fuzz
@given(damaged([b"MATLAB 5.0 MAT-file" + bytes(200)]))
def test_masks_of_sbd(data: bytes) -> None:
    with alone("a.mat", data) as path:
        assert ours(lambda: read_sbd_mask(str(path)), ValueError) is None
