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
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.files import MANIFEST_FILE, RECORD_FILE
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.stage import StageFolder

_PACKAGES = ("pmm-ray", "ray", "torch", "numpy")
_OF_A_STAGE = {"stage", "hash", "folder"}


def read_record(run_dir: str) -> dict[str, Any]:
    """`run.json` of a run folder.

    Raises:
        CannotRunError: there is none, or it is not ours.
    """
    uri = storage.join(run_dir, RECORD_FILE)
    try:
        record = json.loads(storage.read_bytes(uri))
    except FileNotFoundError as error:
        raise CannotRunError(f"{run_dir} holds no {RECORD_FILE}: it is not a run folder") from error
    except (ValueError, RecursionError) as error:
        raise CannotRunError(f"{uri} is not valid JSON: {error}") from error
    ours = isinstance(record, dict) and "name" in record and isinstance(record.get("stages"), list)
    if not ours or any(not isinstance(s, dict) or _OF_A_STAGE - s.keys() for s in record["stages"]):
        raise CannotRunError(f"{uri} is not the record of a run: choose another folder")
    return record


def manifest_near(place: str) -> Manifest | None:
    """The manifest that a folder of results belongs to, if it is there.

    Args:
        place: a stage's folder or a folder of masks: its run's manifest, or the one beside it.
    """
    around = storage.parent(storage.absolute(place))
    beside = storage.join(around, MANIFEST_FILE)
    if storage.exists(beside):
        return open_manifest(beside)
    try:
        uri = read_record(around).get("manifest")
    except CannotRunError:
        return None  # there is none, or it is another program's
    uri = storage.anchor(uri, around) if isinstance(uri, str) and uri else ""
    return open_manifest(uri) if uri and storage.exists(uri) else None


def refuse_others_run(run_dir: str, stages: Collection[str]) -> None:
    """Look, before anything is written, whether a command would take over another one's folder.

    Args:
        stages: that the command may do.

    Raises:
        CannotRunError: the folder's record names other stages, or is not ours.
    """
    if not storage.exists(storage.join(run_dir, RECORD_FILE)):
        return
    others = [s["stage"] for s in read_record(run_dir)["stages"] if s["stage"] not in stages]
    if others:
        raise CannotRunError(
            f"{run_dir} is the folder of another command, which made {others[0]}; its "
            f"{RECORD_FILE} would be overwritten: choose another folder"
        )


class RunRecord:
    """The record of a run folder, as one attempt writes it.

    Args:
        adds: stages of an ablation. They join the record of the run that is in the folder; None:
            the record is the attempt's own.
        kept: those of `adds` of which several are kept side by side, under other hashes.
        shared: those of `adds` that the run has, too. Where the record names one, it stays: with
            other settings the ablation's is of no run.

    Raises:
        CannotRunError: what is in the folder is not the record of a run.
    """

    def __init__(
        self,
        run_dir: str,
        name: str,
        adds: Collection[str] | None = None,
        kept: Collection[str] = (),
        shared: Collection[str] = (),
    ) -> None:
        self._run_dir = run_dir
        self._uri = storage.join(run_dir, RECORD_FILE)
        self._name = name
        self._adds = adds
        self._kept = kept
        self._shared = shared
        self._started = time.time()
        self._stages: list[dict[str, str]] = []
        self._seconds = 0.0  # of all stages, whichever attempt finished them
        self._earlier()

    def _earlier(self) -> dict[str, Any] | None:
        """The record in the folder, if there is one."""
        return read_record(self._run_dir) if storage.exists(self._uri) else None

    def begin(self, folder: StageFolder) -> None:
        """A stage is asked for: it is done, or is going to be.

        Raises:
            CannotRunError: an ablation needs another stage than the run's own.
        """
        name = folder.uri.rsplit("/", 1)[-1]
        entry = {"stage": folder.stage, "hash": folder.hash, "folder": name}
        if self._adds is not None and folder.stage not in self._adds:
            earlier = self._earlier() or {"stages": []}
            if any(s["stage"] == folder.stage and s != entry for s in earlier["stages"]):
                raise CannotRunError(
                    f"{folder.stage} of the run in {self._run_dir} was made with other settings or "
                    "data, and the record names what was made with it: choose another --run-dir, "
                    "or run the recipe first"
                )
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
        earlier = self._earlier()
        if not computed and earlier and not (other and self._differs(earlier, plan or ())):
            return
        if self._adds is not None and earlier is not None:
            self._extend(earlier)
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
            "stages": self._stages if plan is not None else self._stages + self._later(earlier),
        }
        if cluster is not None:
            record["cluster"] = dict(cluster)
        storage.write_bytes(self._uri, json.dumps(record, indent=1).encode())

    def _later(self, earlier: Mapping[str, Any] | None) -> list[dict[str, str]]:
        """The earlier record's other stages, kept by a part of the run (`--only`).

        None of them where a stage of this attempt is another now: they may be out of date.
        """
        if self._adds is not None or earlier is None:
            return []
        stages: list[dict[str, str]] = earlier["stages"]
        own = {stage["stage"] for stage in self._stages}
        same = [stage for stage in stages if stage["stage"] in own] == self._stages
        return [stage for stage in stages if stage["stage"] not in own] if same else []

    def _differs(self, earlier: Mapping[str, Any], plan: Sequence[str]) -> bool:
        return [s for s in earlier["stages"] if s["stage"] in plan] != self._stages

    def _extend(self, record: dict[str, Any]) -> None:
        """Add this attempt's new stages to the record in the run folder."""
        names = {stage["stage"] for stage in record["stages"]}
        stays = names & set(self._shared)
        new = [s for s in self._stages if s not in record["stages"] and s["stage"] not in stays]
        replaced = {stage["stage"] for stage in new} & names - set(self._kept)
        record["stages"] = [s for s in record["stages"] if s["stage"] not in replaced] + new


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
