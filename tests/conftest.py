"""Fixtures of the whole suite."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import cloudpickle

from pmm_ray.config import RunConfig
from pmm_ray.runtime.cluster.connect import connect
from pmm_ray.runtime.core import lease
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.events import EventLog
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.core.stage import RunContext
from pmm_ray.runtime.training import train as runtime_train
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.sources.datasets.shapes import make_shapes

from .training import train, truth_masks

MakeContext = Callable[..., RunContext]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the shared development photographs; tests that need it skip without it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("PMM_SHARED", default))
    if not (folder / "data").is_dir():
        pytest.skip("shared photographs not found: set PMM_SHARED")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[ClusterResources]:
    """One real local Ray with two CPUs for the whole suite."""
    config = RunConfig.model_validate(
        {"runtime": {"cpus": 2, "object_store_bytes": 150_000_000}}
    ).runtime
    with connect("local", config) as resources:
        yield resources


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A small synthetic data set: 16 images of about 64 px, 3 classes, exact masks."""
    out = tmp_path_factory.mktemp("shapes")
    make_shapes(str(out), images=16, size=64, classes=3, seed=1)
    return open_manifest(str(out / "manifest.parquet"))


@pytest.fixture(scope="session")
def masks_uri(shapes: Manifest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The truth of `shapes` as pseudo-masks."""
    return truth_masks(shapes, tmp_path_factory.mktemp("masks"))


@pytest.fixture
def group() -> Iterator[None]:
    """A gloo group of this process alone; its number of torch threads is put back."""
    import torch
    import torch.distributed as dist

    threads = torch.get_num_threads()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


@pytest.fixture
def pickled_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the test's module defines is sent to Ray's processes, which cannot import it."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture
def loop_here(group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of one worker run their loop in this process.

    What Ray Train adds is tested on its own and in whole runs.
    """

    def run(job: TrainingJob, context: RunContext) -> None:
        found = train(job)
        if "stopped" in found:
            raise CannotRunError(found["stopped"])

    monkeypatch.setattr(runtime_train, "run_training", run)


@pytest.fixture
def make_context(ray_session: ClusterResources, tmp_path: Path) -> Iterator[MakeContext]:
    """Makes a `RunContext` on a fresh run folder that this test holds the lease of."""
    held = []

    def make(
        manifest: Manifest, config: RunConfig | None = None, run_dir: Path | None = None
    ) -> RunContext:
        place = str(run_dir or tmp_path / "run")
        attempt = uuid.uuid4().hex
        hold = lease.hold(place, attempt)
        lost = hold.__enter__()
        held.append(hold)
        return SimpleNamespace(
            run_dir=place,
            config=config or RunConfig(),
            manifest=manifest,
            cluster=ray_session,
            events=EventLog(place, "driver"),
            progress=Progress(stream=io.StringIO()),
            attempt=attempt,
            lost=lost,
        )

    yield make
    for hold in held:
        hold.__exit__(None, None, None)
