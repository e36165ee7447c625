"""A cluster of real nodes on this machine: a head and workers started with `ray start`."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.sources.datasets.shapes import make_shapes

from .faulty_proxy import S3_SERVER, Proxy, environment_of, serving, standing_before

RAY = str(Path(sys.executable).with_name("ray"))


# Ray gives a node 30 s; on a busy machine `ray start` says this, and does not end for minutes
GAVE_UP = "timed out during startup"


class NodeEndedError(Exception):
    """A `ray start` ended or gave up; its log is the message."""


@dataclass
class RayNodes:
    """Nodes on ports and in a folder of their own, with a token; ended by their own pids."""

    folder: Path
    port: int
    dashboard_port: int
    token: str
    host: str = "127.0.0.1"
    """Address of the head."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What else the nodes and those who submit have in theirs."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    log_of: dict[int, Path] = field(default_factory=dict)
    """By pid."""

    @property
    def client_environment(self) -> dict[str, str]:
        """What a machine that submits jobs has."""
        return os.environ | {
            "RAY_API_SERVER_ADDRESS": f"http://{self.host}:{self.dashboard_port}",
            **self.environment,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }

    def start(self, *options: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            # as after `activate`: `python` of a job's command is the one with our packages
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
            **self.environment,
        }
        environment.pop("RAY_ADDRESS", None)
        # where jobs are started; by default the same port for every Ray of a machine
        agent = f"--dashboard-agent-listen-port={free_port()}"
        path = self.folder / f"node-{time.monotonic_ns()}.log"
        with open(path, "wb") as log:
            process = subprocess.Popen(
                [*prefix, RAY, "start", *options, "--block", "--disable-usage-stats", agent],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        self.log_of[process.pid] = path
        return process

    def start_head(self, *options: str, prefix: tuple[str, ...] = ()) -> None:
        ports = (f"--port={self.port}", f"--dashboard-port={self.dashboard_port}")
        self._start_node("--head", *ports, "--num-cpus=0", *options, prefix=prefix)

    def start_worker(self, *options: str, prefix: tuple[str, ...] = ()) -> None:
        """Start a node and wait for it.

        Args:
            options: of `ray start`.
            prefix: a command that runs `ray start`, such as `unshare`.
        """
        # nodes of one machine would share it, and each unpacks a job's files there anew
        own = f"--temp-dir={self.folder / f'node-{len(self.processes)}'}"
        self._start_node(f"--address={self.host}:{self.port}", own, *options, prefix=prefix)

    def _start_node(self, *options: str, prefix: tuple[str, ...]) -> None:
        """Ray gives a node 30 s, which a busy machine may not have: three attempts."""
        before = self.alive()
        for attempt in range(3):
            process = self.start("--object-store-memory=150000000", *options, prefix=prefix)
            try:
                self._wait(lambda: self.alive() > before, process)
            except NodeEndedError:
                self.processes.remove(process)
                end([process])
                if attempt == 2:
                    raise
            else:
                return

    def alive(self) -> int:
        """Nodes that the head knows to be alive; 0 while it does not answer."""
        try:
            answer = requests.get(
                f"http://{self.host}:{self.dashboard_port}/api/v0/nodes",
                headers={"Authorization": f"Bearer {self.token}"},
                timeout=10,
            ).json()
        except (requests.RequestException, ValueError):
            return 0
        nodes = answer["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in nodes)

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Ray's own command, from the machine that submits."""
        return subprocess.run(
            [RAY, *arguments], env=self.client_environment, capture_output=True, text=True
        )

    def _wait(self, ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 180
        while not ready():
            said = self.log_of[process.pid].read_text(errors="replace")
            if process.poll() is not None or GAVE_UP in said:
                raise NodeEndedError(said)
            assert time.monotonic() < deadline, f"a node did not come up: {self.logs()}"
            time.sleep(1)

    def logs(self) -> list[str]:
        return [log.read_text(errors="replace") for log in self.folder.glob("node-*.log")]

    def stop(self) -> None:
        """End what was started here and its children; `ray stop` would end others' as well."""
        end(self.processes)
        shutil.rmtree(self.folder, ignore_errors=True)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End processes that were started here, and their children."""
    family = []
    for process in processes:
        if process.poll() is None:
            own = psutil.Process(process.pid)
            family += [own, *own.children(recursive=True)]
    for one in family:
        one.send_signal(signal.SIGTERM) if one.is_running() else None
    _, alive = psutil.wait_procs(family, timeout=20)
    for one in alive:
        one.kill()
    psutil.wait_procs(alive, timeout=10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def ray_head() -> Iterator[RayNodes]:
    """A head without CPUs; tests add workers."""
    # sockets below it have a path limit of 107 bytes
    folder = Path(tempfile.mkdtemp(prefix="pmm-", dir="/tmp"))
    nodes = RayNodes(folder, free_port(), free_port(), secrets.token_hex(16))
    try:
        nodes.start_head()
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs and CAMs that others might have made: blurred truth."""
    folder = tmp_path_factory.mktemp("photographs")
    made = make_shapes(str(folder), images=24, size=64, classes=3, seed=4)
    (folder / "cams").mkdir()
    for row in tables.read_table(made.manifest.uri).to_pylist():
        truth = decode_mask(storage.read_bytes(made.manifest.locate(row["ground_truth_uri"])))
        cam = np.stack([(truth == label)[::4, ::4] * 0.8 for label in row["labels"]])
        keys = np.array(row["labels"]) - 1
        np.savez(folder / "cams" / f"{row['image_id']}.npz", keys=keys, cam=cam.astype(np.float16))
    return folder


@pytest.fixture(scope="module")
def gcs_server() -> Iterator[int]:
    """The port of an emulator of Google's store."""
    with serving("-m", "gcp_storage_emulator", "start", "--in-memory", "--port") as port:
        yield port


@pytest.fixture(scope="module")
def proxy_server() -> Iterator[Proxy]:
    with serving(*S3_SERVER) as port, standing_before(port) as proxy:
        yield proxy


@pytest.fixture
def s3(proxy_server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """`s3://bucket` behind a proxy."""
    for name, value in environment_of(proxy_server).items():
        monkeypatch.setenv(name, value)
    storage._filesystem.cache_clear()
    proxy_server.seen.clear()
    yield proxy_server
    proxy_server.faults.clear()
    storage._filesystem.cache_clear()


@pytest.fixture
def gs(gcs_server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`gs://bucket`."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{gcs_server}")
    url = f"http://127.0.0.1:{gcs_server}/storage/v1/b?project=test"
    assert requests.post(url, json={"name": "bucket"}, timeout=30).status_code in (200, 409)
    storage._filesystem.cache_clear()
    yield
    storage._filesystem.cache_clear()
