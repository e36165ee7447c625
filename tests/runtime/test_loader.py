"""The training loader: the same samples for any number of workers, exact resume, bad images."""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from filelock import FileLock

from pmm_ray.config import ClassifierConfig, RunConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.nets.segmenter_config import normalisation
from pmm_ray.runtime.cluster.connect import scratch_folder
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.index import scan_parts, write_index
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.rows.images import encode_mask
from pmm_ray.runtime.rows.photographs import with_long_side
from pmm_ray.runtime.training.augment import augment, jitter
from pmm_ray.runtime.training.loader import (
    TrainingRow,
    TrainingSet,
    batches,
    training_rows,
)
from pmm_ray.runtime.training.mask_file import MaskFile, build_mask_file, mask_index
from pmm_ray.runtime.training.sampling import BatchPlan, epoch_order, sample_seed
from pmm_ray.stages.train_classifier import ClassifierSample

from ..training import photographs_of

CONFIG = ClassifierConfig(resize_long=(48, 80), crop_size=64)
SPACE = LabelSpace.from_names(["a", "b", "c"])


def dataset(manifest: Manifest, rows: pa.Table | None = None) -> TrainingSet:
    if rows is None:
        rows = training_rows(manifest.uri, "train", labelled=True)
    statistics = normalisation(CONFIG.backbone, None)
    sample = ClassifierSample(CONFIG, manifest.label_space.num_foreground, statistics)
    return TrainingSet(rows, photographs_of(manifest), sample, 5, "stage")


def global_batches(manifest: Manifest, workers: int, **options: Any) -> list[torch.Tensor]:
    data = dataset(manifest)
    plan = BatchPlan(5, len(data), 4, workers)
    options = {"first": 0, "last": 2 * plan.steps_per_epoch, **options}
    shares = [list(batches(data, plan, rank, **options)) for rank in range(workers)]
    return [torch.cat([batch.images for batch in step]) for step in zip(*shares, strict=True)]


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_sees_the_same_samples(shapes: Manifest, workers: int) -> None:
    for one, many in zip(global_batches(shapes, 1), global_batches(shapes, workers), strict=True):
        assert torch.equal(one, many)


def test_loader_processes_give_the_same_samples(shapes: Manifest) -> None:
    want = global_batches(shapes, 1, last=2)
    got = global_batches(shapes, 1, last=2, processes=1)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


class Whereabouts:
    """A sample that says which process made it."""

    def __call__(self, row: TrainingRow, image: Any, seed: int) -> tuple[torch.Tensor, ...]:
        place = [os.getpid(), os.getppid(), torch.get_num_threads()]
        return torch.zeros(1), torch.tensor(place)


def test_loader_processes_are_never_forked_from_a_process_with_threads(shapes: Manifest) -> None:
    rows = training_rows(shapes.uri, "train")
    data = TrainingSet(rows, photographs_of(shapes), Whereabouts(), 5, "stage")  # type: ignore[arg-type]
    plan = BatchPlan(5, len(data), 4, 1)
    idle = threading.Event()
    thread = threading.Thread(target=idle.wait, daemon=True)
    thread.start()
    try:
        loaded = list(batches(data, plan, 0, first=0, last=2, processes=2))
    finally:
        idle.set()
    makers = {tuple(place.tolist()) for batch in loaded for place in batch.targets}
    pids, parents, threads = zip(*makers, strict=True)
    assert len(set(pids)) == 2
    # a fork server, which has no thread but its own, stands between
    assert os.getpid() not in {*pids, *parents}
    assert set(threads) == {1}


DECODES = """
import pickle, sys, time
from pmm_ray.runtime.training.loader import batches
data, plan = pickle.load(open(sys.argv[1], "rb"))
shares = batches(data, plan, 0, first=0, last=2, processes=1)
next(shares)
print("decodes", flush=True)
time.sleep(600)
"""


def test_loader_processes_end_with_a_worker_that_is_killed(
    shapes: Manifest, tmp_path: Path
) -> None:
    data = dataset(shapes)
    (tmp_path / "data").write_bytes(pickle.dumps((data, BatchPlan(5, len(data), 4, 1))))
    command = [sys.executable, "-c", DECODES, str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "decodes\n"
        loaders = psutil.Process(worker.pid).children(recursive=True)
        assert len(loaders) >= 2  # and the fork server
        worker.kill()
    assert not psutil.wait_procs(loaders, timeout=30)[1]


def test_resume_at_any_step_is_exact(shapes: Manifest) -> None:
    whole = global_batches(shapes, 2)
    for first in (1, len(whole) - 1):
        rest = global_batches(shapes, 2, first=first)
        assert all(torch.equal(a, b) for a, b in zip(whole[first:], rest, strict=True))


def test_the_order_of_the_manifest_does_not_matter(shapes: Manifest, tmp_path: Path) -> None:
    table = tables.read_table(shapes.uri)
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    uri = str(tmp_path / "manifest.parquet")
    storage.write_bytes(uri, tables.to_bytes(shuffled))
    assert training_rows(uri, "train").equals(training_rows(shapes.uri, "train"))


def test_an_epoch_holds_every_image_once_and_epochs_differ() -> None:
    plan = BatchPlan(0, 10, 4, 2)
    assert plan.steps_per_epoch == 2
    first = np.concatenate([plan.batch(step)[1] for step in range(2)])
    assert len(set(first)) == 8
    assert plan.batch(2)[0] == 1
    assert not np.array_equal(epoch_order(0, 0, 10), epoch_order(0, 1, 10))
    # fewer images than a batch holds: they repeat
    assert BatchPlan(0, 3, 8, 2).batch(5)[1].shape == (8,)


@pytest.mark.parametrize("images", [1, 3, 8, 20, 24])
def test_a_step_takes_its_batch_without_copying_the_epoch(images: int) -> None:
    plan = BatchPlan(5, images, 8, 2)
    for step in range(2 * plan.steps_per_epoch):
        epoch, indices = plan.batch(step)
        order = epoch_order(5, epoch, images)
        first = step % plan.steps_per_epoch * 8
        assert indices.tolist() == np.resize(order, max(images, 8))[first : first + 8].tolist()
        assert np.shares_memory(indices, order) == (images >= 8)


def test_an_image_that_comes_again_in_an_epoch_looks_different(shapes: Manifest) -> None:
    """As a row of a rare class, and where a batch holds more than all images."""
    rows = training_rows(shapes.uri, "train", labelled=True)
    data = dataset(shapes, rows.take([0, 1, 1, 1, 2]))
    views = [data[4, index][0] for index in (1, 2, 3)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(views, 2))
    alone = dataset(shapes, rows.slice(0, 3))
    assert torch.equal(views[0], alone[4, 1][0])
    (batch,) = batches(alone, BatchPlan(5, 3, 9, 1), 0, first=0, last=1)
    assert len({image.numpy().tobytes() for image in batch.images}) == 9


def test_seeds_are_stable_over_processes_and_machines() -> None:
    assert sample_seed(1, 2, "cat") == 17485411663938178853
    assert len({sample_seed(s, e, i) for s in (1, 12) for e in (2, 3) for i in ("a", "b")}) == 8


def test_a_bad_image_is_recorded_and_substituted(shapes: Manifest, tmp_path: Path) -> None:
    rows = training_rows(shapes.uri, "train", labelled=True).to_pylist()
    for row in rows:
        row["uri"] = shapes.locate(row["uri"])
    (tmp_path / "cut.jpg").write_bytes(Path(rows[1]["uri"]).read_bytes()[:600])
    rows[0]["uri"] = str(tmp_path / "absent.jpg")
    rows[1]["uri"] = str(tmp_path / "cut.jpg")
    rows[2]["labels"] = [9]
    data = dataset(shapes, pa.Table.from_pylist(rows))
    kinds = []
    for index in range(3):
        image, target, errors = data[0, index]
        again = data[0, index]
        kinds.append(errors[0].kind)
        assert errors[0].image_id == rows[index]["image_id"]
        assert torch.equal(image, again[0])
        assert target.sum() > 0
    assert kinds == ["missing", "decode", "label"]


def test_a_data_set_without_a_good_image_ends_with_a_reason(shapes: Manifest) -> None:
    row = {"image_id": "a", "uri": "/absent.jpg", "labels": [1]}
    data = dataset(shapes, pa.Table.from_pylist([row]))
    with pytest.raises(CannotRunError, match=r"a: missing.*/absent\.jpg"):
        data[0, 0]


def write_masks(folder: Path, masks: dict[str, np.ndarray], space: LabelSpace = SPACE) -> str:
    for part, (image_id, mask) in enumerate(masks.items()):
        row = {"image_id": image_id, "height": 8, "width": 8, "labels": [], "round": 0}
        row |= {"mask_png": encode_mask(mask, space), "foreground": 0.5}
        tables.write_rows(str(folder / f"part-{part}.parquet"), [row], tables.MASKS)
    return str(folder)


def test_masks_are_mapped_from_one_file(tmp_path: Path) -> None:
    masks = {name: np.full((8, 8), i, np.uint8) for i, name in enumerate("pqr")}
    masks["p"][0] = 255
    uri = write_masks(tmp_path / "masks", masks)
    file = build_mask_file(uri, SPACE, tmp_path / "scratch")
    stamp = file.path.stat().st_mtime_ns
    assert build_mask_file(uri, SPACE, tmp_path / "scratch").path == file.path
    assert file.path.stat().st_mtime_ns == stamp
    assert sorted(mask_index(uri).image_ids) == ["p", "q", "r"]
    assert len(file) == 3
    assert file.png("q") == encode_mask(masks["q"], SPACE)
    assert np.array_equal(file.mask("p", (8, 8)), masks["p"])
    with pytest.raises(RowError, match=r"mask is \(8, 8\), the image \(8, 9\)"):
        file.mask("p", (8, 9))
    with pytest.raises(KeyError):
        file.png("absent")
    assert not list(file.path.parent.glob("*.tmp"))
    write_masks(tmp_path / "masks", {"p": masks["q"]})
    assert build_mask_file(uri, SPACE, tmp_path / "scratch").path != file.path


def test_a_mask_file_travels_as_its_path(tmp_path: Path) -> None:
    uri = write_masks(tmp_path / "masks", {"p": np.ones((8, 8), np.uint8)})
    file = build_mask_file(uri, SPACE, tmp_path / "scratch")
    unopened = pickle.dumps(file)
    assert file.mask("p", (8, 8)).all()
    assert pickle.dumps(file) == unopened
    assert pickle.loads(unopened).png("p") == file.png("p")


def test_the_index_of_a_finished_table_is_read_instead_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of two parts has the mask that every reader of the index takes."""
    uri = write_masks(tmp_path / "masks", {n: np.zeros((8, 8), np.uint8) for n in "pq"})
    again = {"image_id": "p", "height": 8, "width": 8, "labels": [], "round": 0}
    again |= {"mask_png": encode_mask(np.ones((8, 8), np.uint8), SPACE), "foreground": 1.0}
    tables.write_rows(f"{uri}/part-2.parquet", [again], tables.MASKS)
    write_index(uri, scan_parts(uri)[0])
    # no stage lists a folder that has an index
    monkeypatch.setattr(storage, "list_files", lambda *_: pytest.fail("a folder was listed"))
    file = build_mask_file(uri, SPACE, tmp_path / "scratch")
    assert sorted(mask_index(uri).image_ids) == ["p", "q"]
    assert len(file) == 2
    assert not file.mask("p", (8, 8)).any()
    table = tables.read_table(f"{uri}/index.parquet")
    storage.write_bytes(f"{uri}/index.parquet", tables.to_bytes(table))
    assert build_mask_file(uri, SPACE, tmp_path / "scratch").path != file.path


def test_a_new_mask_file_takes_the_place_of_those_that_nobody_trains_on(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"

    def file_of(name: str) -> MaskFile:
        masks = {"p": np.ones((8, 8), np.uint8)}
        return build_mask_file(write_masks(tmp_path / name, masks), SPACE, scratch)

    used = file_of("used")
    unused = file_of("unused").path
    for litter in (unused.with_suffix(".123.tmp"), unused.with_suffix(".tmp")):
        litter.touch()
    begun = unused.with_name("begun.tmp")
    begun.touch()
    with FileLock(begun.with_suffix(".lock")):
        last = file_of("last")
    there = {path for path in used.path.parent.iterdir() if path.suffix != ".lock"}
    assert there == {used.path, last.path, begun}
    assert used.mask("p", (8, 8)).all()


@pytest.mark.parametrize("fault", [errno.EACCES, errno.EROFS])
def test_a_scratch_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    def refused(self: Path, **options: Any) -> None:
        raise OSError(fault, os.strerror(fault), str(self))

    uri = write_masks(tmp_path / "masks", {"p": np.ones((8, 8), np.uint8)})
    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(CannotRunError, match=r"scratch/masks: .* set runtime\.scratch"):
        build_mask_file(uri, SPACE, tmp_path / "scratch")
    with pytest.raises(CannotRunError, match=rf"pmm-ray-{os.getuid()}: .* set runtime\.scratch"):
        scratch_folder(RunConfig().runtime)


def test_a_scratch_in_the_home_folder_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = RunConfig.model_validate({"runtime": {"scratch": "~/scratch"}})
    assert scratch_folder(config.runtime) == tmp_path / "scratch"


def test_a_mask_outside_the_label_space_is_named(tmp_path: Path) -> None:
    wide = LabelSpace.from_names(list("abcdefgh"))
    uri = write_masks(tmp_path / "masks", {"bad": np.full((8, 8), 7, np.uint8)}, wide)
    with pytest.raises(CannotRunError, match=r"bad .* holds \[7\]: allowed are 0\.\.3 and 255"):
        build_mask_file(uri, SPACE, tmp_path / "scratch")
    with pytest.raises(CannotRunError, match="no masks"):
        build_mask_file(str(tmp_path / "empty"), SPACE, tmp_path / "scratch")


@pytest.mark.parametrize("shape", [(375, 500), (500, 20), (1, 1)])
def test_augmentation_has_its_size_and_its_seed(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)

    def view(seed: int) -> Any:
        return augment(
            image,
            np.random.default_rng(seed),
            resize_long=(60, 90),
            crop_size=64,
            color_jitter=0.3,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )

    assert view(1).shape == (3, 64, 64)
    assert view(1).dtype == np.float32
    assert np.array_equal(view(1), view(1))
    assert not np.array_equal(view(1), view(2))
    assert np.abs(view(1)).max() <= 1


def test_jitter_without_strength_changes_nothing_and_greys_stay_grey() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((8, 8, 3)).astype(np.float32)
    assert np.array_equal(jitter(image, rng, 0.0), image)
    grey = np.repeat(rng.random((8, 8, 1)).astype(np.float32), 3, axis=2)
    out = jitter(grey, rng, 0.3)
    assert np.allclose(out, out[..., :1], atol=1e-5)
    assert with_long_side(np.zeros((10, 1000, 3), np.uint8), 50).shape == (1, 50, 3)
