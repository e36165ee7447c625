"""Before a run on a cluster: does every node see the storage, run the same code, and have room?

One small task on every node, all at once, seconds in all. A table names each fault and its node
before the run computes anything.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import pmm_ray
from pmm_ray.config import RuntimeConfig
from pmm_ray.runtime.cluster.connect import SCRATCH_ADVICE, scratch_folder
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError, cannot_run, last_line
from pmm_ray.runtime.core.store_faults import reaching

ANSWER_SECONDS = 60.0
_PACKAGES = ("ray", "torch", "numpy", "pyarrow")
_LEAST_SCRATCH = 1024**3
# A mask is a PNG: 0.9 KB of palette and headers, and in the mean 0.02 bytes a pixel. Of 2,000 masks
# of VOC and of the shapes, with the CRF and without, none was larger than these make it.
_BYTES_OF_A_MASK = 1024
_PIXELS_PER_BYTE = 16
_GIB = 1024**3


@dataclass(frozen=True)
class Question:
    """What a node is asked; small and picklable."""

    run_dir: str | None
    """Where every node must be able to write; None: storage is not checked."""
    marker: str
    """Name of the folder in it that driver and nodes write to, then delete."""
    inputs: tuple[str, ...]
    """Files and folders that every node must see."""
    runtime: RuntimeConfig
    gpus: float = 0.0
    """GPUs that Ray counts on the node."""


@dataclass(frozen=True)
class Facts:
    """What a node has."""

    versions: Mapping[str, str]
    storage_error: str = ""
    store_failure: str = ""
    """Of a bucket or a disk that did not answer there; nothing more of storage is then known."""
    missing: tuple[str, ...] = ()
    """Inputs that are not there."""
    scratch: str = ""
    scratch_error: str = ""
    scratch_free: int = 0
    """With what earlier trainings left there, bytes."""
    gpus_seen: int | None = None
    """GPUs that torch sees; None: not asked."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one node."""

    node: str
    what: str
    found: str
    advice: str
    may_pass: bool = False


@dataclass
class Report:
    """What every node answered."""

    nodes: dict[str, Facts] = field(default_factory=dict)
    """Facts by the node's name."""
    findings: list[Finding] = field(default_factory=list)

    def table(self) -> str:
        """The findings, one line each, in columns."""
        rows = [("node", "what", "found", "do")]
        rows += [(f.node, f.what, f.found, f.advice) for f in self.findings]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
            for row in rows
        )

    def require_healthy(self) -> None:
        """Raise CannotRunError with the table if anything was found.

        Where all of it may pass, as of a node that is being lost, it is a MayPassError.
        """
        if self.findings:
            raise cannot_run(
                f"not every node can do its part:\n{self.table()}\n"
                "Mend these nodes and run the same command again "
                "(--set runtime.preflight=false leaves this check out).",
                all(finding.may_pass for finding in self.findings),
            )


def inspect_cluster(
    run_dir: str | None,
    runtime: RuntimeConfig,
    *,
    inputs: Sequence[str] = (),
    scratch_bytes: int = 0,
) -> Report:
    """Ask every alive node of the connected cluster.

    One that has not answered after `ANSWER_SECONDS` is a finding, unless the cluster has lost it by
    then.

    Args:
        run_dir: folder or uri of the run; None: storage is not checked.
        runtime: for the scratch folder.
        inputs: files and folders that every node must see.
        scratch_bytes: space that a node needs in the scratch folder, bytes.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = f"preflight-{uuid.uuid4().hex[:8]}"
    if run_dir is not None:
        storage.write_bytes(storage.join(run_dir, marker, "driver"), marker.encode())
    report = Report()
    asked = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        gpus = float(node["Resources"].get("GPU", 0))
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(answer)
        node_id, address = node["NodeID"], node["NodeManagerAddress"]
        name = f"{node['NodeManagerHostname']} ({address}, {node_id[:6]})"
        ref = task.remote(Question(run_dir, marker, tuple(inputs), runtime, gpus), node_id)
        asked[ref] = (name, node_id, gpus)
    try:
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
        silent = dict.fromkeys(late, f"no answer in {ANSWER_SECONDS:g} s")
        for ref in done:
            name, node_id, gpus = asked[ref]
            try:
                facts = ray.get(ref)
            except _lost() as error:
                silent[ref] = last_line(error)
                continue
            except ray.exceptions.RayError as error:
                advice = "install the same pmm-ray there, or send --working-dir"
                report.findings.append(Finding(name, "pmm-ray", last_line(error), advice))
                continue
            report.nodes[name] = facts
            report.findings += judge(name, facts, own_versions(), gpus, scratch_bytes)
            if run_dir is not None and not (facts.storage_error or facts.store_failure):
                report.findings += _read_back(name, run_dir, marker, node_id)
        # Ray lists a node that died as alive for about a minute
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for ref, found in silent.items():
            name, node_id, _ = asked[ref]
            if node_id in alive:
                advice = "is it overloaded, cut off or being taken away? ray status"
                report.findings.append(Finding(name, "node", found, advice, may_pass=True))
    finally:
        if run_dir is not None:
            storage.delete_folder(storage.join(run_dir, marker))
    return report


def training_scratch(manifest_uri: str | None, split: str) -> int:
    """Bytes that a file of masks of a training split takes in a node's scratch, at most.

    Args:
        manifest_uri: of the run; None or not written yet: 0.
        split: that a network is trained on.
    """
    if manifest_uri is None or not storage.exists(manifest_uri):
        return 0
    table = tables.read_table(manifest_uri, ["split", "height", "width"])
    rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    sizes = [height * width for of, height, width in rows if of == split]
    return sum(sizes) // _PIXELS_PER_BYTE + len(sizes) * _BYTES_OF_A_MASK


def answer(question: Question, node_id: str) -> Facts:
    """What the node that runs this has. Faults are facts, not errors."""
    error = store_failure = ""
    missing: tuple[str, ...] = ()
    try:
        if question.run_dir is not None:
            error = _storage_error(question.run_dir, question.marker, node_id)
        missing = tuple(uri for uri in question.inputs if not _visible(uri))
    except MayPassError as failure:
        store_failure = str(failure)
    scratch, scratch_error, free = question.runtime.scratch or "", "", 0
    try:
        folder = scratch_folder(question.runtime)
        scratch = str(folder)
        # a training reads its file of masks again, or writes its own in place of these
        left = sum(file.stat().st_size for file in (folder / "masks").glob("*.arrow"))
        free = shutil.disk_usage(folder).free + left
    except (OSError, CannotRunError) as failure:
        scratch_error = str(failure.__cause__ or failure)
    return Facts(
        versions=own_versions(),
        storage_error=error,
        store_failure=store_failure,
        missing=missing,
        scratch=scratch,
        scratch_error=scratch_error,
        scratch_free=free,
        gpus_seen=_visible_gpus() if question.gpus else None,
    )


def judge(
    node: str, facts: Facts, expected: Mapping[str, str], gpus: float, scratch_bytes: int
) -> list[Finding]:
    """What is wrong with a node.

    Args:
        expected: the driver's versions.
        gpus: that Ray counts on it.
        scratch_bytes: that it needs in the scratch folder.
    """
    findings = []
    if facts.storage_error:
        advice = "mount the same storage there, give the node its credentials, or use a bucket"
        findings.append(Finding(node, "run folder", facts.storage_error, advice))
    if facts.store_failure:
        advice = "check whether it reaches the bucket or server: network, proxy, credentials"
        findings.append(Finding(node, "storage", facts.store_failure, advice, may_pass=True))
    for uri in facts.missing:
        advice = "mount it there, or put it into a bucket"
        findings.append(Finding(node, "input", f"{uri} is not there", advice))
    for package, version in expected.items():
        other = facts.versions.get(package, "none")
        if _release(other) != _release(version):
            found = f"{other}, the driver has {version}"
            advice = "use one image, or pip install -c constraints.txt everywhere"
            findings.append(Finding(node, package, found, advice))
    needed = max(scratch_bytes, _LEAST_SCRATCH)
    if facts.scratch_error:
        findings.append(Finding(node, "scratch", facts.scratch_error, SCRATCH_ADVICE))
    elif facts.scratch_free < needed:
        found = f"{facts.scratch_free / _GIB:.1f} GiB free in {facts.scratch}"
        advice = f"{needed / _GIB:.1f} GiB are needed: set runtime.scratch to a larger disk"
        findings.append(Finding(node, "scratch", found, advice))
    if facts.gpus_seen is not None and facts.gpus_seen < gpus:
        found = f"torch sees {facts.gpus_seen}, Ray counts {gpus:g}"
        advice = "check torch's CUDA build, driver, container runtime; or ray start --num-gpus=0"
        findings.append(Finding(node, "GPU", found, advice))
    return findings


def _release(version: str) -> str:
    """Without the build: one image of torch has `+cpu`, another `+cu130`."""
    return re.sub(r"\+\S*", "", version)


def own_versions() -> dict[str, str]:
    """What must agree on every node: Python, our code, and the packages that decide results."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    versions["pmm-ray"] = f"{pmm_ray.__version__} (code {_code_digest()})"
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "none"
    return versions


def _code_digest() -> str:
    root = Path(pmm_ray.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def _storage_error(run_dir: str, marker: str, node_id: str) -> str:
    try:
        seen = storage.read_bytes(storage.join(run_dir, marker, "driver"))
    except OSError as error:
        return f"cannot read what the driver wrote to {run_dir}: {_short(error)}"
    if seen != marker.encode():
        return f"another file than the driver wrote to {run_dir}"
    try:
        with reaching(run_dir):
            storage.write_bytes(storage.join(run_dir, marker, node_id), node_id.encode())
    except MayPassError:
        raise
    except (OSError, CannotRunError) as error:
        return f"cannot write to {run_dir}: {_short(error)}"
    return ""


def _read_back(node: str, run_dir: str, marker: str, node_id: str) -> list[Finding]:
    """Whether the driver sees what the node wrote."""
    try:
        if storage.read_bytes(storage.join(run_dir, marker, node_id)) == node_id.encode():
            return []
        found = "the driver reads another file than the node wrote"
    except OSError as error:
        found = f"the driver does not see what the node wrote: {_short(error)}"
    return [Finding(node, "run folder", found, "both must mount the same storage")]


def _visible(uri: str) -> bool:
    try:
        return storage.exists(uri)
    except OSError:
        return False


def _visible_gpus() -> int:
    """GPUs that torch sees, in a process without the mask that Ray puts on a task's."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    script = "import torch; print(torch.cuda.device_count())"
    try:
        output = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=True,
        ).stdout
    except (subprocess.SubprocessError, OSError):
        return 0
    return int(output.split()[-1])


def _lost() -> tuple[type[Exception], ...]:
    """What Ray raises of a task whose node, or whose process there, died."""
    from ray.exceptions import NodeDiedError, TaskUnschedulableError, WorkerCrashedError

    return NodeDiedError, TaskUnschedulableError, WorkerCrashedError


def _short(error: OSError | CannotRunError) -> str:
    return (
        getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    )
