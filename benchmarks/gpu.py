"""What a GPU gives: every stage that holds a network, beside what the card can do.

    python benchmarks/gpu.py [--backbones scalenet101 ...] [--minutes 10] [--out gpu]

Takes about ten minutes on any CUDA card; `--device cpu --tiny` tries the program itself, in
seconds. For each backbone and stage: images/s, the share of the time in which kernels run, TFLOP/s
(counted operations of convolutions and matrix products) beside a measured matrix product, and peak
memory, in float32 and in bfloat16 with channels last, in larger batches, and compiled where there
is a compiler. Trainings run the pipeline's loop on one device, beside bare torch. Weights and
photographs are random: they change no time. docs/reference/gpu.md says how to read the numbers.

A part that fails is a row that says why. `OUT.json` and `OUT.md` are written after every part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import gpu_training
import torch
from gpu_measure import ceilings, measured, operations
from gpu_stages import BFLOAT16, COMPILED, FLOAT32, FULL, STAGES, TINY, Size, Way

BACKBONES = ("efficientnet_lite0", "scalenet101", "resnet38", "res2net101")
TRAINED = Way("bfloat16, compiled", bfloat16=True, compiled=True)


class Part(NamedTuple):
    """A row to measure."""

    backbone: str
    stage: str
    way: Way


def parts(backbones: list[str], with_compiler: bool) -> Iterator[Part]:
    """All rows in order; what is compiled comes last, where the time may be over."""
    for backbone in backbones:
        for stage, asked in STAGES.items():
            yield from (Part(backbone, stage, way) for way in asked.ways)
        for stage in gpu_training.STAGES:
            yield from (Part(backbone, stage, way) for way in (FLOAT32, BFLOAT16))
    if with_compiler:
        for backbone in backbones:
            yield Part(backbone, "multi-crop CAMs", COMPILED)
            yield from (Part(backbone, stage, TRAINED) for stage in gpu_training.STAGES)


class Bench:
    """Measures parts on one device.

    Args:
        folder: for the trainings' data and files.
    """

    def __init__(self, device: torch.device, size: Size, folder: Path) -> None:
        self._device = device
        self._size = size
        self._folder = folder
        self._flops: dict[tuple[str, str], float] = {}
        self._data: Any = None

    def __call__(self, part: Part) -> dict[str, Any]:
        """The columns of a row."""
        if part.stage in STAGES:
            return self._asked(part)
        if self._data is None:
            self._data = gpu_training.prepare(self._folder, self._size)
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            rest = (self._size, self._device, Path(place), self._data)
            return gpu_training.trained(part.stage, part.backbone, part.way, *rest)

    def _asked(self, part: Part) -> dict[str, Any]:
        asked = STAGES[part.stage]
        work = asked.make(part.backbone, part.way, self._size, self._device)
        key = (part.backbone, part.stage)
        if key not in self._flops:
            self._flops[key] = operations(work)
        flops, seconds = self._flops[key], self._size.seconds
        images = self._size.photographs if asked.several else 1
        return measured(work, self._device, images=images, flops=flops, seconds=seconds)


def guarded(work: Callable[[], dict[str, Any]], until: float) -> dict[str, Any]:
    """What the work found; `failed` says why there is nothing."""
    if time.monotonic() > until:
        return {"failed": "not run: the time was over"}
    try:
        return work()
    # whatever a driver, a compiler or a network raises
    except Exception as error:
        text = " ".join(str(error).split())
        return {"failed": f"{type(error).__name__}: {text[:160]}"}


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    place = Path(__file__).parent
    git = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    found = {
        "card": f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)",
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "commit": git.stdout.strip() or "unknown",
        "date": datetime.now(UTC).date().isoformat(),
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {
            "card": about.name,
            "memory_gb": about.total_memory / 1e9,
            "capability": f"{about.major}.{about.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            # what float32 means: torch lets convolutions, not matrix products, round to TF32
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        }
    return found


def markdown(found: dict[str, Any]) -> str:
    """The machine, its ceilings, and a table of all rows."""
    about, top = found["machine"], found["ceilings"]
    lines = [f"{about['card']}, torch {about['torch']}, commit {about['commit']}, {about['date']}."]
    if "failed" in top:
        lines.append(f"Ceilings: {top['failed']}.")
    else:
        lines.append(
            f"Matrix product: {top['matmul_bfloat16']:.3g} TFLOP/s in bfloat16, "
            f"{top['matmul_float32']:.3g} in float32; copy: {top['copy']:.3g} GB/s."
        )
    titles = ["backbone", "stage", "way", "images/s", "x float32", "busy", "TFLOP/s"]
    titles += ["of matmul", "peak GB", "of bare torch", "waits"]
    lines += ["", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    first = {(r["backbone"], r["stage"]): r for r in found["rows"] if r["way"] == FLOAT32.name}
    for row in found["rows"]:
        cells = [row["backbone"], row["stage"], row["way"]]
        if "failed" in row:
            cells += [row["failed"].replace("|", "/"), *[""] * (len(titles) - 4)]
        else:
            base = first.get((row["backbone"], row["stage"]), {}).get("images_per_second")
            speed, ceiling = row["images_per_second"], top.get("matmul_bfloat16")
            cells += [
                f"{speed:.3g}",
                f"{speed / base:.2f}" if base else "",
                f"{100 * row['busy']:.0f} %",
                f"{row['tflops']:.3g}",
                f"{100 * row['tflops'] / ceiling:.0f} %" if ceiling else "",
                "" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}",
                f"{row['of_bare_torch']:.2f}" if "of_bare_torch" in row else "",
                f"{100 * row['loader_wait']:.0f} %" if "loader_wait" in row else "",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, write, print; returns what the JSON file holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="everything small: no figures")
    parser.add_argument("--backbones", nargs="+")
    parser.add_argument("--minutes", type=float, default=10.0, help="no part begins after these")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", default="gpu", help="OUT.json and OUT.md")
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA card here; --device cpu --tiny tries the program itself")
    device, size = torch.device(arguments.device), TINY if arguments.tiny else FULL
    backbones = arguments.backbones or list(BACKBONES[:1] if arguments.tiny else BACKBONES)
    # torch's compiler calls one of the system's
    found_compiler = any(shutil.which(name) for name in ("cc", "gcc", "g++", "clang"))
    compiler = found_compiler and not arguments.tiny and not arguments.no_compile
    until = time.monotonic() + 60 * arguments.minutes
    top = guarded(lambda: ceilings(device, size.matrix, size.copied, size.seconds / 2), until)
    found: dict[str, Any] = {"machine": machine(device), "ceilings": top, "rows": []}
    if not found_compiler:
        found["machine"]["compiler"] = "none: nothing was compiled"
    with tempfile.TemporaryDirectory(prefix="pmm-gpu-") as folder:
        bench = Bench(device, size, Path(folder))
        for part in parts(backbones, compiler):
            row = {"backbone": part.backbone, "stage": part.stage, "way": part.way.name}
            row |= guarded(lambda part=part: bench(part), until)
            found["rows"].append(row)
            print(json.dumps(row), flush=True)
            Path(f"{arguments.out}.json").write_text(json.dumps(found, indent=1) + "\n")
            Path(f"{arguments.out}.md").write_text(markdown(found))
    print(markdown(found))
    return found


if __name__ == "__main__":
    main()
