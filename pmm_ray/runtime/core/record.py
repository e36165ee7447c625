"""`run.json`: what ran, where, and with what."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.files import RECORD_FILE
from pmm_ray.runtime.core.stage import StageFolder

_PACKAGES = ("pmm-ray", "ray", "torch", "numpy")


class RunRecord:
    """The record of a run folder, as one attempt writes it.

    Args:
        adds: stages of an ablation. They join the record of the run that is in the folder; None:
            the record is the attempt's own.
        kept: those of `adds` of which several are kept side by side, under other hashes.
        shared: those of `adds` that the run has, too. Where the record names one, it stays: with
            other settings the ablation's is of no run.
    """

    def __init__(
        self,
        run_dir: str,
        name: str,
        adds: Collection[str] | None = None,
        kept: Collection[str] = (),
        shared: Collection[str] = (),
    ) -> None:
        self._uri = storage.join(run_dir, RECORD_FILE)
        self._name = name
        self._adds = adds
        self._kept = kept
        self._shared = shared
        self._started = time.time()
        self._stages: list[dict[str, str]] = []
        self._seconds = 0.0  # of all stages, whichever attempt finished them

    def begin(self, folder: StageFolder) -> None:
        """A stage is asked for: it is done, or is going to be."""
        name = folder.uri.rsplit("/", 1)[-1]
        entry = {"stage": folder.stage, "hash": folder.hash, "folder": name}
        if entry not in self._stages:
            self._stages.append(entry)

    def done(self, seconds: float) -> None:
        """A stage is done, after so many seconds of work."""
        self._seconds += seconds

    def write(
        self,
        *,
        computed: bool,
        finished: bool,
        plan: Sequence[str] | None,
        manifest: str | None,
        cluster: Mapping[str, Any] | None,
    ) -> None:
        """Write `run.json`.

        Args:
            computed: whether the attempt computed anything. If not, the record that is there stays.
                Only a whole run that has other stages now replaces it (`cycles.stop_when` may end
                a cycle earlier).
            finished: whether the attempt has come to its end.
            plan: all stages, if all may run; None: only some may.
            manifest: its uri, once there is one.
            cluster: what it has, once it is connected.
        """
        other = finished and plan is not None and self._adds is None
        if not computed and storage.exists(self._uri) and not (other and self._differs(plan or ())):
            return
        if self._adds is not None and (earlier := self._extended()) is not None:
            storage.write_bytes(self._uri, json.dumps(earlier, indent=1).encode())
            return
        record: dict[str, Any] = {
            "name": self._name,
            "started": _iso(self._started),
            "finished": _iso(time.time()) if finished else None,
            "seconds": round(self._seconds, 1),
            "command": " ".join(sys.argv),
            "machine": machine(),
            "versions": {name: version(name) for name in _PACKAGES},
            "manifest": manifest,
            "stages": self._stages if plan is not None else self._stages + self._later(),
        }
        if cluster is not None:
            record["cluster"] = dict(cluster)
        storage.write_bytes(self._uri, json.dumps(record, indent=1).encode())

    def _later(self) -> list[dict[str, str]]:
        """The earlier record's other stages, kept by a part of the run (`--only`).

        None of them where a stage of this attempt is another now: they may be out of date.
        """
        if self._adds is not None or not storage.exists(self._uri):
            return []
        earlier: list[dict[str, str]] = json.loads(storage.read_bytes(self._uri))["stages"]
        own = {stage["stage"] for stage in self._stages}
        same = [stage for stage in earlier if stage["stage"] in own] == self._stages
        return [stage for stage in earlier if stage["stage"] not in own] if same else []

    def _differs(self, plan: Sequence[str]) -> bool:
        record = json.loads(storage.read_bytes(self._uri))
        return [s for s in record["stages"] if s["stage"] in plan] != self._stages

    def _extended(self) -> dict[str, Any] | None:
        """The record in the run folder with this attempt's new stages.

        None where there is none, or where a stage that it names has changed: then the attempt's
        own record replaces it.
        """
        assert self._adds is not None
        try:
            record: dict[str, Any] = json.loads(storage.read_bytes(self._uri))
        except FileNotFoundError:
            return None
        names = {stage["stage"] for stage in record["stages"]}
        stays = names & set(self._shared)
        new = [s for s in self._stages if s not in record["stages"] and s["stage"] not in stays]
        changed = {stage["stage"] for stage in new} & names
        if any(name not in self._adds for name in changed):
            return None
        replaced = changed - set(self._kept)
        record["stages"] = [s for s in record["stages"] if s["stage"] not in replaced] + new
        return record


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def machine() -> dict[str, Any]:
    """What the driver runs on."""
    import psutil

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "disk_free_bytes": shutil.disk_usage(".").free,
    }
