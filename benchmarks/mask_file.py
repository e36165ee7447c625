"""The masks of a training from a bucket that answers slowly, into the file of a node.

    python benchmarks/mask_file.py                    # 10,260 parts, 20 ms a request
    python benchmarks/mask_file.py --parts 1000 --delay 0.05

A server of S3's reading half stands on loopback; each of its answers waits. A part holds one mask,
as after a stage on many cores. With PYTHONPATH on an older tree the same script measures that one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from pmm_ray.labels import VOC12
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import scan_parts, write_index
from pmm_ray.runtime.rows.images import encode_mask
from pmm_ray.runtime.training.mask_file import build_mask_file

SIDE = 375  # px, about a photograph of VOC


def serve(folder: str, delay: float, port: Any) -> None:
    """Answer HEAD and GET of `/bucket/NAME` with the files of a folder, each after a delay."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: bool) -> None:
            time.sleep(delay)
            path = Path(folder, self.path.partition("?")[0].removeprefix("/bucket/"))
            data = path.read_bytes() if path.is_file() else None
            start, end = 0, len(data or b"") - 1
            span = self.headers.get("Range", "").removeprefix("bytes=")
            if data is not None and span:
                first, _, last = span.partition("-")
                start, end = int(first), min(int(last or end), end)
            self.send_response(404 if data is None else 206 if span else 200)
            piece = (data or b"")[start : end + 1]
            self.send_header("Content-Length", str(len(piece)))
            self.send_header("Last-Modified", formatdate(0, usegmt=True))
            self.send_header("ETag", '"x"')
            if span:
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(data or b'')}")
            self.end_headers()
            if body:
                self.wfile.write(piece)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port.value = server.server_address[1]
    server.serve_forever()


def write_parts(folder: Path, parts: int) -> None:
    """A finished table of masks, one in each part."""
    mask = (
        np.random.default_rng(0).integers(0, 21, (8, 8)).repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)
    )
    png = encode_mask(mask, VOC12)
    for number in range(parts):
        image_id = f"image-{number:06d}"
        row = {"image_id": image_id, "height": SIDE, "width": SIDE, "mask_png": png}
        row |= {"foreground": 0.5, "labels": [1], "round": 0}
        tables.write_rows(str(folder / f"part-{image_id}.parquet"), [row], tables.MASKS)
    write_index(str(folder), scan_parts(str(folder))[0], tables.MASKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=10_260)
    parser.add_argument("--delay", type=float, default=0.02, help="of each answer, s")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        masks = Path(place, "masks")
        masks.mkdir()
        write_parts(masks, asked.parts)
        port = multiprocessing.Value("i", 0)
        server = multiprocessing.Process(target=serve, args=(place, asked.delay, port), daemon=True)
        server.start()
        while not port.value:
            time.sleep(0.05)
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port.value}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        started = time.monotonic()
        cpu = time.process_time()
        made = build_mask_file("s3://bucket/masks", VOC12, Path(place, "scratch"))
        seconds = time.monotonic() - started
        print(f"{len(made)} masks in {asked.parts} parts, {asked.delay * 1000:g} ms an answer: ")
        print(f"{seconds:.1f} s, {time.process_time() - cpu:.1f} s of CPU")
        server.kill()


if __name__ == "__main__":
    main()
