"""Runs and commands in buckets, behind a proxy that throttles, cuts, refuses and hangs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pmm_ray.config import RunConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.index import read_all

from ..export.runs import SEGMENTER, make_run
from .faulty_proxy import Fault, Proxy

RECIPE = """
name: bucket
data: {source: folder, root: ROOT}
classifier: {epochs: 2, batch_size: 6, resize_long: [48, 72], crop_size: 48, output_stride: 16,
             weights: none}
cams: {scales: [1.0], flip: false}
masks: {alpha: 2, tasks: 2, batch_size: 1, crf: {iterations: 500}}
evaluate: {ladder: []}
runtime: {object_store_bytes: 150000000}
"""


def write_photographs(root: Path, images: int = 24) -> None:
    """A folder of photographs with labels."""
    (root / "images").mkdir(parents=True)
    lines = ["image_id,labels"]
    for number in range(images):
        rng = np.random.default_rng(number)
        noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        noise.resize((64, 48)).save(root / "images" / f"photo-{number:02d}.png")
        lines.append(f"photo-{number:02d},{'a;b' if number % 3 else 'b'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("a\nb\n")


def start_run(folder: Path, root: str, run_dir: str) -> subprocess.Popen[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("ROOT", root))
    command = [sys.executable, "-m", "pmm_ray.cli", "run", str(recipe), "--run-dir", run_dir]
    return subprocess.Popen(
        [*command, "--until", "make_masks", "--address", "local"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def masks_of(run_dir: str) -> str:
    record = json.loads(storage.read_bytes(f"{run_dir}/run.json"))
    [stage] = [stage for stage in record["stages"] if stage["stage"] == "make_masks"]
    return tables.content_hash(read_all(f"{run_dir}/{stage['folder']}"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("answer", ["expire", "deny"])
def test_credentials_that_expire_in_mid_run_cost_no_image(
    s3: Proxy, tmp_path: Path, answer: str
) -> None:
    write_photographs(tmp_path / "photographs")
    for path in (tmp_path / "photographs").rglob("*.*"):
        name = path.relative_to(tmp_path).as_posix()
        storage.write_bytes(f"s3://bucket/{answer}/{name}", path.read_bytes())
    root, run_dir = f"s3://bucket/{answer}/photographs", f"s3://bucket/{answer}/run"
    first = start_run(tmp_path, root, run_dir)
    deadline = time.monotonic() + 300
    while len(s3.attempts("PUT", f"{answer}/run/make_masks")) < 4:
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    s3.faults = [Fault(method, "/", answer) for method in ("GET", "HEAD", "PUT", "POST", "DELETE")]
    _, printed = first.communicate(timeout=600)
    assert first.returncode == 75, printed
    assert "Traceback" not in printed
    # what Ray's C++ writes
    assert "core_worker" not in printed
    # a photograph or the run, whichever is refused first
    [said] = [line for line in printed.splitlines() if line.startswith("pmm: ")]
    assert f"{answer}/run" in said or f"{answer}/photographs" in said
    assert "Run the same command again" in said
    s3.faults.clear()
    second = start_run(tmp_path, root, run_dir)
    _, printed = second.communicate(timeout=600)
    assert second.returncode == 0, printed
    record = json.loads(storage.read_bytes(f"{run_dir}/run.json"))
    for stage in record["stages"]:
        assert not tables.read_errors(f"{run_dir}/{stage['folder']}/errors")
    whole = start_run(tmp_path, str(tmp_path / "photographs"), str(tmp_path / "run"))
    _, printed = whole.communicate(timeout=600)
    assert whole.returncode == 0, printed
    assert masks_of(run_dir) == masks_of(str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_buckets_alone_throttled_cut_and_killed_ends_with_the_table_of_a_local_run(
    s3: Proxy, tmp_path: Path
) -> None:
    write_photographs(tmp_path / "photographs")
    for path in (tmp_path / "photographs").rglob("*.*"):
        name = path.relative_to(tmp_path).as_posix()
        storage.write_bytes(f"s3://bucket/{name}", path.read_bytes())
    local = start_run(tmp_path, str(tmp_path / "photographs"), str(tmp_path / "run"))
    _, printed = local.communicate(timeout=600)
    assert local.returncode == 0, printed

    s3.faults = [
        Fault("PUT", "/make_masks", "cut upload", 3),
        Fault("GET", "/photographs/", "slow down", 5),
        Fault("PUT", "/make_cams", "slow down", 3),
        Fault("GET", "/make_cams", "cut download", 3),
    ]
    first = start_run(tmp_path, "s3://bucket/photographs", "s3://bucket/run")
    deadline = time.monotonic() + 300
    while len(s3.attempts("PUT", "/make_masks")) < 10:
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    others = psutil.Process(first.pid).children(recursive=True)
    workers = [process for process in others if "Agent" not in process.name()]
    first.kill()
    first.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=60)  # its tasks may commit for a moment
    assert not alive
    since = time.monotonic()
    second = start_run(tmp_path, "s3://bucket/photographs", "s3://bucket/run")
    _, printed = second.communicate(timeout=600)
    assert second.returncode == 0, printed
    assert all(fault.times == 0 for fault in s3.faults)
    assert masks_of("s3://bucket/run") == masks_of(str(tmp_path / "run"))

    puts = [(when, path) for when, verb, path, _ in s3.seen if verb == "PUT" and when > since]
    commits = [when for when, path in puts if re.search(r"/make_masks-\w+/part-", path)]
    first_commit, last_commit = commits[0], commits[-1]
    listings = [(when, path) for when, verb, path, _ in s3.seen if "list-type=2" in path]
    assert listings
    assert not [path for when, path in listings if first_commit < when < last_commit]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_photographs_cams_labels_runs_and_masks_of_commands_may_be_in_buckets(
    s3: Proxy, tmp_path: Path
) -> None:
    write_photographs(tmp_path / "photographs", 4)
    (tmp_path / "cams").mkdir()
    cam = np.zeros((2, 12, 16), np.float16)
    cam[0, 2:6, 2:6] = cam[1, 6:10, 8:14] = 1
    for number in range(4):
        np.savez(tmp_path / "cams" / f"photo-{number:02d}.npz", keys=[0, 1], cam=cam)
    (tmp_path / "run").mkdir()
    make_run(tmp_path / "run", "train_segmenter-r0")
    save_segmenter(str(tmp_path / "run/train_segmenter-r0-00000000/model.pt"))
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            name = path.relative_to(tmp_path).as_posix()
            storage.write_bytes(f"s3://bucket/commands/{name}", path.read_bytes())
    place = tmp_path / "elsewhere"
    place.mkdir()
    at = "s3://bucket/commands"
    images = ["--images", f"{at}/photographs/images"]
    commands = {
        "masks": ["--cams", f"{at}/cams", "--labels", f"{at}/photographs/labels.csv"],
        "predict": [f"{at}/run", "--set", "predict.actors=1"],
    }
    for name, options in commands.items():
        options += [*images, "--out", f"{at}/{name}", "--address", "local"]
        options += ["--set", "runtime.object_store_bytes=150000000"]
        done = subprocess.run(
            [sys.executable, "-m", "pmm_ray.cli", name, *options],
            cwd=place,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        made = [uri.rsplit("/", 1)[-1] for uri in storage.list_files(f"{at}/{name}/masks")]
        assert made == [f"photo-{number:02d}.png" for number in range(4)]
        assert not [*place.iterdir()]


def save_segmenter(uri: str) -> None:
    """A segmenter of four classes at random."""
    from pmm_ray.nets.checkpoints import save_model
    from pmm_ray.nets.segmenter import build_segmenter

    config = RunConfig.model_validate({"segmenter": SEGMENTER | {"weights": "none"}}).segmenter
    space = LabelSpace.from_names(["disc", "square", "cross"], "shapes")
    meta = {"config": config.model_dump(mode="json"), "num_classes": 4, "ignore_index": 255}
    meta |= {"label_space": space.to_json(), "round": 0, "training": {}}
    save_model(uri, "segmenter", build_segmenter(config, 4, 255), meta)
