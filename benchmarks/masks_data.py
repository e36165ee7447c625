"""What the comparisons of `masks_pipeline.py` share: tables of photographs, a run folder, rates."""

from __future__ import annotations

import argparse
import io
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image

from pmm_ray.config import RunConfig
from pmm_ray.labels import VOC12
from pmm_ray.runtime.core import lease, storage, tables
from pmm_ray.runtime.core.events import EventLog
from pmm_ray.runtime.core.manifest import ManifestRow, open_manifest, write_manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.core.stage import RunContext


def shared() -> Path:
    """Where the development photographs are."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("PMM_SHARED", beside)) / "data"


def make_tables(
    folder: Path, options: argparse.Namespace, rows: int, scale: float = 1.0
) -> tuple[str, str]:
    """(manifest, cams table) of so many rows; photographs are scaled, CAMs are as they are."""
    files = sorted(Path(options.cams).glob("*.npz"))[: options.photographs]
    sources, cams = [], []
    for file in files[:rows]:
        photograph = Path(options.voc) / "JPEGImages" / f"{file.stem}.jpg"
        if scale != 1.0:
            small = folder / f"{file.stem}.jpg"
            with Image.open(photograph) as image:
                size = (round(image.width * scale), round(image.height * scale))
                image.resize(size).save(small, quality=95)
            photograph = small
        with Image.open(photograph) as image:
            width, height = image.size
        stored = np.load(file)
        sources.append((file.stem, str(photograph), height, width, stored["keys"] + 1))
        cams.append(stored["cam"].astype("<f2"))
    manifest_rows, cam_rows = [], []
    for number in range(rows):
        repeat, which = divmod(number, len(sources))
        stem, uri, height, width, labels = sources[which]
        image_id = f"{stem}-{repeat:03d}"
        labels = [int(label) for label in labels]
        manifest_rows.append(ManifestRow(image_id, uri, tuple(labels), height, width, "train"))
        shape = {"cam_height": cams[which].shape[1], "cam_width": cams[which].shape[2]}
        about = {"image_id": image_id, "height": height, "width": width, "labels": labels}
        cam_rows.append({**about, "cam": cams[which].tobytes(), **shape})
    manifest = str(folder / "manifest.parquet")
    write_manifest(manifest, manifest_rows, VOC12, source="benchmark", exif="ignore")
    table = pa.Table.from_pylist(cam_rows, schema=tables.CAMS)
    storage.write_bytes(str(folder / "cams.parquet"), tables.to_bytes(table, row_group_size=64))
    return manifest, str(folder / "cams.parquet")


@contextmanager
def run_in(run_dir: Path, manifest: str, cluster: ClusterResources) -> Iterator[RunContext]:
    """A run folder that is held for the length of the block."""
    attempt = uuid.uuid4().hex
    with lease.hold(str(run_dir), attempt):
        yield SimpleNamespace(
            run_dir=str(run_dir),
            config=RunConfig(),
            manifest=open_manifest(manifest),
            cluster=cluster,
            events=Clock(str(run_dir)),
            progress=Progress(stream=io.StringIO()),
            attempt=attempt,
        )


class Clock(EventLog):
    """An event log that notes when chunks finish, and the CPU seconds spent by then."""

    def __init__(self, run_dir: str) -> None:
        super().__init__(run_dir, "driver")
        self.begin()

    def begin(self) -> None:
        """Forget what was before."""
        self.started = time.monotonic()
        self.chunks: list[tuple[float, float, int]] = []

    def chunk(self, images: int) -> None:
        """A chunk is done."""
        self.chunks.append((time.monotonic(), cpu_seconds(), images))

    def write(self, event: str, **fields: Any) -> None:
        """Record an event of the stage."""
        super().write(event, **fields)
        if event == "chunk":
            self.chunk(fields["images"])

    def rates(self, workers: int) -> Rates:
        """From the moment when every worker had finished a chunk to the end."""
        first, last = self.chunks[workers - 1], self.chunks[-1]
        images = sum(chunk[2] for chunk in self.chunks[workers:])
        return Rates(
            images / (last[0] - first[0]),
            (last[1] - first[1]) / images,
            self.chunks[0][0] - self.started,
        )


class Rates(NamedTuple):
    """How fast one side was once it ran, and how long until it did."""

    images_per_second: float
    cpu_seconds: float
    """Of one image, over all processes: workers, driver, and what Ray runs."""
    first_chunk: float
    """Seconds until the first chunk was done."""


def cpu_seconds() -> float:
    """User and system time of this process and all below it."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def peak_bytes(pid: int | str = "self") -> int:
    """Peak resident bytes of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]


def runtime(options: argparse.Namespace) -> Any:
    """The runtime section: as many CPUs as workers."""
    return RunConfig.model_validate({"runtime": {"cpus": options.workers}}).runtime
