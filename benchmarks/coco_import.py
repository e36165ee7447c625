"""Time and peak memory of importing COCO annotations of the official size.

    python benchmarks/coco_import.py [--beside CHECKOUT [--repeats 3]]

Writes a synthetic `instances_train2014.json` with as many images and annotations as the official
one (82,783 and 604,907; about its 330 MB), empty files in place of the photographs, and imports
it in a process of its own, once with the objects that masks are made of and once without. Prints
seconds and the largest resident size. With another checkout both, each by its own copy of this
file, import the same files in turn, and a line has the ratios of the medians: below 1 is less here.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pmm_ray.labels import COCO14

IMAGES, ANNOTATIONS = 82_783, 604_907
# images of the official file that no annotation speaks of
BARE = 702
LIMIT_SECONDS, LIMIT_BYTES = 180.0, 2e9
HERE = Path(__file__).resolve().parent.parent
MEASURED = {"time": "seconds", "CPU": "cpu_seconds", "peak memory": "peak_bytes"}


def write_annotations(path: Path, images: int, annotations: int, bare: int) -> None:
    """A file laid out like the official one; its last `bare` images have no annotation."""
    rng = np.random.default_rng(0)
    # official polygons: about 50 numbers an annotation, one in a hundred a crowd
    points = 2 * rng.integers(4, 42, annotations)
    # every image but the bare ones at least once, the others anywhere, in no order
    owners = np.concatenate(
        [np.arange(images - bare), rng.integers(0, images - bare, annotations - images + bare)]
    )
    rng.shuffle(owners)
    categories = rng.choice(COCO14.dataset_ids[1:], annotations)
    order = rng.permutation(images)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info": {}, "images": [')
        file.write(", ".join(json.dumps(_image(int(i))) for i in order))
        file.write('], "licenses": [], "annotations": [')
        for i in range(annotations):
            numbers = ", ".join(f"{v:.2f}" for v in rng.random(points[i]) * 420 + 20)
            file.write(
                f'{", " if i else ""}{{"segmentation": [[{numbers}]], "area": {i * 1.1:.4f}, '
                f'"iscrowd": 0, "image_id": {owners[i] + 1}, '
                f'"bbox": [20.0, 20.0, 420.5, 420.25], "category_id": {categories[i]}, '
                f'"id": {i + 1}}}'
            )
        names = zip(COCO14.dataset_ids[1:], COCO14.names[1:], strict=True)
        kinds = [{"supercategory": "x", "id": int(i), "name": name} for i, name in names]
        file.write(f'], "categories": {json.dumps(kinds)}}}')


def _image(i: int) -> dict[str, object]:
    return {
        "license": 1,
        "file_name": f"COCO_train2014_{i + 1:012d}.jpg",
        "coco_url": f"http://images.cocodataset.org/train2014/COCO_train2014_{i + 1:012d}.jpg",
        "height": 480,
        "width": 640,
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": "http://farm1.staticflickr.com/94/241612385_d9e5b891ed_z.jpg",
        "id": i + 1,
    }


def measure(root: str, out: str, truth: bool) -> None:
    """Import, and print what it took as JSON; runs in a process of its own."""
    from pmm_ray.sources.datasets.coco14 import import_coco14

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.monotonic()
    report = import_coco14(root, out, splits=["train"], truth_splits=["train"] if truth else [])
    result = {
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time(),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_bytes_of_imports": before,
        "rows": report.rows,
        "annotations": report.counts["annotations"],
    }
    print(json.dumps(result))


def imported(side: Path, folder: str, out: Path, what: str) -> dict[str, float]:
    """What a checkout's own `measure` says."""
    script = str(side / "benchmarks/coco_import.py")
    command = [sys.executable, script, "--measure", folder, str(out), what]
    environment = {**os.environ, "PYTHONPATH": str(side)}
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    result: dict[str, float] = json.loads(output)
    return result


def print_result(what: str, result: dict[str, float]) -> None:
    print(
        f"{what:17} {result['rows']} images, {result['annotations']} annotations: "
        f"{result['seconds']:.1f} s ({result['cpu_seconds']:.1f} s of CPU), "
        f"peak {result['peak_bytes'] / 1e6:.0f} MB "
        f"({result['peak_bytes_of_imports'] / 1e6:.0f} MB of it before the import)",
        flush=True,
    )


def median(results: list[dict[str, float]], key: str) -> float:
    return statistics.median(result[key] for result in results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--annotations", type=int, default=ANNOTATIONS)
    parser.add_argument("--beside", type=Path, help="another checkout")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        root, out, truth = arguments.measure
        measure(root, out, truth == "objects")
        return 0
    bare = min(BARE, arguments.images // 10)
    with tempfile.TemporaryDirectory(prefix="pmm-coco-") as folder:
        root = Path(folder)
        for name in ("annotations", "train2014"):
            (root / name).mkdir()
        annotations = root / "annotations/instances_train2014.json"
        write_annotations(annotations, arguments.images, arguments.annotations, bare)
        for i in range(arguments.images):
            (root / f"train2014/COCO_train2014_{i + 1:012d}.jpg").touch()
        print(f"{annotations.stat().st_size / 1e6:.0f} MB of JSON")
        kept = True
        sides = [HERE] if arguments.beside is None else [arguments.beside.resolve(), HERE]
        for what in ("manifest", "objects"):
            found: dict[Path, list[dict[str, float]]] = {side: [] for side in sides}
            for turn in range(arguments.repeats):
                for side in sides:
                    result = imported(side, folder, root / f"{what}-{turn}-{side == HERE}", what)
                    assert result["rows"] == arguments.images - bare, result
                    assert result["annotations"] == arguments.annotations, result
                    print_result(f"{what} of {side.name}", result)
                    found[side].append(result)
            kept &= all(
                result["seconds"] < LIMIT_SECONDS and result["peak_bytes"] < LIMIT_BYTES
                for result in found[HERE]
            )
            if arguments.beside is not None:
                ratios = [
                    f"{name} {median(found[HERE], key) / median(found[sides[0]], key):.2f}"
                    for name, key in MEASURED.items()
                ]
                print(f"{what}, over {sides[0].name}: {', '.join(ratios)}")
        print(f"under {LIMIT_SECONDS:.0f} s and {LIMIT_BYTES / 1e9:.0f} GB: {kept}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
