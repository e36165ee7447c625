"""Three Ray nodes and a bucket on hosts of their own: links that break or crawl, clocks apart."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import EXIT_TRY_AGAIN
from pmm_ray.runtime.core.index import read_all
from tests.sources.coco_tree import annotation, box, entry, photo, write

from .conftest import RayNodes, end, free_port
from .hosts import Hosts, why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
CUT_SECONDS = 60
SETTLE_SECONDS = 20
"""Until a node that was out of reach either is one again or has ended."""
IMAGES = 24
RECIPE = f"""
name: hosts
data: {{source: shapes, images: {IMAGES}, classes: 3, size: 64}}
classifier: {{epochs: 40, batch_size: 6, resize_long: [48, 72], crop_size: 48, output_stride: 16,
             workers: 2, checkpoint_seconds: 2, validation_images: 0}}
cams: {{scales: [1.0], flip: false}}
masks: {{alpha: 2, batch_size: 1, crf: {{iterations: 4000}}}}
evaluate: {{ladder: []}}
"""
# stands where the runbook's recipe does, with networks that CPUs can ask
COCO_RECIPE = """
name: coco14
data: {source: coco14, train_split: train, held_out_split: val}
classifier: {epochs: 1, batch_size: 4, resize_long: [48, 72], crop_size: 48, output_stride: 16,
             validation_images: 0}
cams: {scales: [1.0], flip: false}
masks: {alpha: 2}
evaluate: {ladder: []}
"""


def runbook() -> dict[int, str]:
    """The commands of cluster/README.md by their number."""
    text = (ROOT / "cluster" / "README.md").read_text()
    text = text.split("## From nothing to COCO masks in ten commands")[1]
    parts = re.split(r"^# (\d+)\..*\n", text.split("```")[1], flags=re.M)
    return {int(number): body for number, body in zip(parts[1::2], parts[2::2], strict=True)}


def shell(commands: str, environment: dict[str, str], folder: Path) -> str:
    """What commands print, run as written; `python` and `pmm` are those of this interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", commands],
        env=environment | {"PATH": path},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Site:
    """A cluster over three hosts (`head`, `one`, `two`), a bucket on a fourth."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.bucket_port = free_port()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{hosts.address('bucket')}:{self.bucket_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        self.home = folder / "home"
        self.home.mkdir()
        shell(runbook()[6], os.environ | {"HOME": str(self.home)}, self.home)
        self.nodes = RayNodes(
            folder / "ray",
            free_port(),
            free_port(),
            (self.home / ".ray" / "auth_token").read_text().strip(),
            host=hosts.address("head"),
            environment=self.environment,
        )
        self.nodes.folder.mkdir()
        self.checkout = folder / "checkout"
        ignored = shutil.ignore_patterns("__pycache__", "tests")
        for part in ("jobs", "latticecrf", "pmm_ray"):
            shutil.copytree(ROOT / part, self.checkout / part, ignore=ignored)
        (self.checkout / "recipe.yaml").write_text(RECIPE)
        self.bucket: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        server = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(self.bucket_port)]
        self.bucket = subprocess.Popen(
            [*self.hosts.prefix("bucket"), *server],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                url = f"{self.environment['AWS_ENDPOINT_URL']}/bucket"
                requests.put(url, timeout=5).raise_for_status()
                break
            except requests.ConnectionError:
                assert time.monotonic() < deadline, "the bucket did not come up"
                time.sleep(0.2)
        own = f"--node-ip-address={self.hosts.address('head')}"
        self.nodes.start_head(own, "--dashboard-host=0.0.0.0", prefix=self.hosts.prefix("head"))
        for name in ("one", "two"):
            self.start_node(name)

    def start_node(self, name: str) -> None:
        own = f"--node-ip-address={self.hosts.address(name)}"
        label = '--labels={"pool": "cpu"}'
        self.nodes.start_worker(own, "--num-cpus=2", label, prefix=self.hosts.prefix(name))

    def close(self) -> None:
        self.nodes.stop()
        if self.bucket is not None:
            end([self.bucket])

    def submit(self, run_dir: str, log: Path) -> subprocess.Popen[bytes]:
        """The whole pipeline up to the masks, as the runbook does it, from this machine."""
        submit = [sys.executable, str(ROOT / "jobs" / "submit.py"), "--working-dir", "."]
        pipeline = ["python", "jobs/run_pipeline.py", "--recipe", "recipe.yaml"]
        with open(log, "wb") as out:
            return subprocess.Popen(
                [*submit, "--", *pipeline, "--run-dir", run_dir, "--until", "make_masks"],
                cwd=self.checkout,
                env=self.nodes.client_environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if reason := why_not():
        pytest.skip(reason)
    tag = f"pmm{os.getpid() % 10_000}"
    names = ("head", "one", "two", "bucket")
    hosts = Hosts(tag, f"10.203.{os.getpid() % 200}", names)
    folder = Path(tempfile.mkdtemp(prefix="pmm-", dir="/tmp"))  # for sockets: short paths
    site = Site(hosts, folder)
    try:
        hosts.open()
        site.open()
        yield site
    finally:
        site.close()
        hosts.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def bucket(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine reads the bucket, too."""
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    storage._filesystem.cache_clear()
    yield
    storage._filesystem.cache_clear()


def ended(process: subprocess.Popen[bytes], log: Path, code: int = 0) -> str:
    try:
        process.wait(timeout=900)
    finally:
        end([process])
    said = log.read_text(errors="replace")
    assert process.returncode == code, said
    return said


def wait_for(ready: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 400
    while not ready():
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.2)


def trained(said: str) -> bool:
    """Whether a training is well under way, by what a job printed."""
    return re.search(r"train_classifier: (\d{3,})/", said) is not None


def found(run_dir: str, pattern: str) -> list[str]:
    return [uri for uri in storage.list_files(run_dir, recursive=True) if pattern in uri]


def masks_of(run_dir: str) -> str:
    """A digest of the masks; no stage has an error row."""
    record = json.loads(storage.read_bytes(f"{run_dir}/run.json"))
    folders = {stage["stage"]: stage["folder"] for stage in record["stages"]}
    for folder in folders.values():
        assert not tables.read_errors(f"{run_dir}/{folder}/errors")
    table = read_all(f"{run_dir}/{folders['make_masks']}")
    assert table.num_rows == IMAGES
    return tables.content_hash(table)


@pytest.fixture(scope="module")
def undisturbed(site: Site, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Masks of a run that nothing happened to."""
    log = tmp_path_factory.mktemp("whole") / "log"
    said = ended(site.submit("s3://bucket/whole", log), log)
    assert "make_masks" in said
    with pytest.MonkeyPatch.context() as patch:
        for name, value in site.environment.items():
            patch.setenv(name, value)
        storage._filesystem.cache_clear()
        record = json.loads(storage.read_bytes("s3://bucket/whole/run.json"))
        assert record["cluster"]["nodes"] == 3
        return masks_of("s3://bucket/whole")


def test_the_runbook_s_commands_that_need_no_cloud(site: Site, tmp_path: Path) -> None:
    def name(number: int, split: str) -> str:
        return f"COCO_{split}2014_{number:012d}"

    for split, numbers in (("train", range(1, 9)), ("val", range(9, 12))):
        for number in numbers:
            photo(tmp_path / f"coco/{split}2014/{name(number, split)}.jpg")
        write(
            tmp_path / f"coco/annotations/instances_{split}2014.json",
            [entry(number, f"{name(number, split)}.jpg") for number in numbers],
            [annotation(number, 1 + number % 3, [box(4, 4, 12, 9)]) for number in numbers],
        )
    for path in (tmp_path / "coco").rglob("*.*"):
        if path.is_file():
            place = path.relative_to(tmp_path).as_posix()
            storage.write_bytes(f"s3://bucket/{place}", path.read_bytes())
    (site.checkout / "recipes").mkdir(exist_ok=True)
    (site.checkout / "recipes" / "coco14.yaml").write_text(COCO_RECIPE)
    commands = runbook()
    [tunnel, exports] = commands[8].strip().splitlines()
    assert tunnel.startswith("ray dashboard")  # needs the cloud; here the head has an address
    exports = exports.replace("127.0.0.1:8265", f"{site.nodes.host}:{site.nodes.dashboard_port}")
    # there is no autoscaler
    run, replaced = re.subn(r"^ *--set 'runtime.autoscaled_nodes=.*\n", "", commands[9], flags=re.M)
    assert replaced == 1
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    own |= {"HOME": str(site.home), **site.environment}
    said = shell(f"{exports}\n{run}".replace("BUCKET", "bucket"), own, site.checkout)
    assert "make_masks: 11/11 images" in said
    shell(f"{exports}\n{commands[10]}".replace("BUCKET", "bucket"), own, site.checkout)
    pngs = list((site.checkout / "runs" / "coco14-masks").rglob("*.png"))
    assert sorted(png.stem for png in pngs) == sorted(
        [*(name(n, "train") for n in range(1, 9)), *(name(n, "val") for n in range(9, 12))]
    )


def test_a_link_that_is_cut_during_masks(site: Site, undisturbed: str, tmp_path: Path) -> None:
    run_dir, log = "s3://bucket/masks", tmp_path / "log"
    process = site.submit(run_dir, log)
    wait_for(lambda: len(found(run_dir, "/make_masks-")) >= 3, process, log)
    site.hosts.cut("one")
    time.sleep(CUT_SECONDS)
    site.hosts.mend("one")
    ended(process, log)
    assert masks_of(run_dir) == undisturbed
    whole_again(site)


def test_a_link_that_is_cut_during_a_training(site: Site, undisturbed: str, tmp_path: Path) -> None:
    run_dir, log = "s3://bucket/training", tmp_path / "log"
    process = site.submit(run_dir, log)
    wait_for(lambda: trained(log.read_text(errors="replace")), process, log)
    site.hosts.cut("two")
    time.sleep(CUT_SECONDS)
    site.hosts.mend("two")
    whole_again(site)
    ended(process, log)
    assert masks_of(run_dir) == undisturbed


def test_a_slow_link(site: Site, undisturbed: str, tmp_path: Path) -> None:
    run_dir, log = "s3://bucket/slow", tmp_path / "log"
    site.hosts.slow("one", 2)
    try:
        ended(site.submit(run_dir, log), log)
    finally:
        site.hosts.slow("one", 0)
    assert masks_of(run_dir) == undisturbed


# Python runs it before anything else; no other clock tells a driver how late it is
CLOCK = """
import os, time
right = time.time
time.time = lambda: right() + float(os.environ["AHEAD_SECONDS"])
"""


@pytest.mark.parametrize("ahead", [-120, 120])
def test_a_driver_whose_clock_is_two_minutes_off_takes_no_run_over(
    site: Site, undisturbed: str, tmp_path: Path, ahead: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    run_dir, log = f"s3://bucket/clock{ahead}", tmp_path / "log"
    process = site.submit(run_dir, log)
    wait_for(lambda: found(run_dir, "lease.json"), process, log)
    answer = second_driver(site, run_dir, tmp_path, ahead)
    assert "is in use by process" in answer
    assert "on head" in answer
    ended(process, log)
    assert masks_of(run_dir) == undisturbed


def second_driver(site: Site, run_dir: str, hook: Path, ahead: int) -> str:
    """What `pmm run` of a living run says on another host, whose clock is so many seconds ahead.

    Args:
        hook: folder with a sitecustomize.py: `CLOCK`.
    """
    second = [sys.executable, "-m", "pmm_ray.cli", "run", str(site.checkout / "recipe.yaml")]
    answer = subprocess.run(
        [*site.hosts.prefix("two"), *second, "--run-dir", run_dir],
        env=os.environ | {"RAY_ADDRESS": "", "PYTHONPATH": str(hook), "AHEAD_SECONDS": str(ahead)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == EXIT_TRY_AGAIN, answer.stderr
    return answer.stderr


def whole_again(site: Site) -> None:
    """A node that Ray gave up ends; its supervisor, here the test, starts it again."""
    time.sleep(SETTLE_SECONDS)
    for name in ("one", "two"):
        if not on(site, name):
            running = [process for process in site.nodes.processes if process.poll() is None]
            site.nodes.processes[:] = running
            site.start_node(name)


def on(site: Site, name: str) -> bool:
    answer = requests.get(
        f"http://{site.nodes.host}:{site.nodes.dashboard_port}/api/v0/nodes",
        headers={"Authorization": f"Bearer {site.nodes.token}"},
        timeout=30,
    ).json()["data"]["result"]["result"]
    here = site.hosts.address(name)
    return any(node["node_ip"] == here and node["state"] == "ALIVE" for node in answer)
