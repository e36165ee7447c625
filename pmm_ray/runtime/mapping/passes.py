"""The passes of a stage over its images: again where a process or a node was lost to a failure."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pyarrow as pa

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import BudgetExceededError, ErrorRow, MayPassError
from pmm_ray.runtime.core.index import TableIndex, id_column, ids_without
from pmm_ray.runtime.core.progress import StageProgress
from pmm_ray.runtime.core.resources import Pool
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.mapping.blame import MOST_FAULTS, TRIES, Blame, Verdict
from pmm_ray.runtime.mapping.chunks import make_chunks, sizes_together
from pmm_ray.runtime.mapping.follow import Sizes
from pmm_ray.runtime.mapping.ledger import Ledger
from pmm_ray.runtime.mapping.meters import Meters
from pmm_ray.runtime.mapping.operators import stream
from pmm_ray.runtime.mapping.stall import Limits, StalledError
from pmm_ray.runtime.mapping.tasks import PASSES, Output
from pmm_ray.runtime.mapping.workers import Producer, Worker

# of what a task says: what the log of events keeps
_IN_EVENTS = (
    *("images", "errors", "bytes", "sent", "seconds", "cpu_seconds", "pool_seconds"),
    *("producer_cpu_seconds", "producer_pool_seconds", "host"),
)
_MOST_NAMED = 10


@dataclass
class Passes:
    """The images of one stage, mapped until each has a row or an error row.

    Chunks first; then, one by one, the images of chunks whose process kept dying. A node that is
    at fault is avoided from there on, and its error rows are withdrawn.
    """

    context: RunContext
    folder: StageFolder
    ledger: Ledger
    inputs: Mapping[str, TableIndex]
    expected: pa.ChunkedArray
    factory: Callable[[], Worker]
    output: Output
    pool: Pool
    producer: Producer | None
    budget: int
    progress: StageProgress
    sent: int = 0
    """Bytes from the first pool to the second."""
    mapped: int = 0
    network: Counter[str] = field(default_factory=Counter)
    """Of the pool that holds one, see `tasks.PASSES`."""

    def run(self, batch_size: int) -> None:
        """Map every image.

        Raises:
            BudgetExceededError: too many error rows.
            CannotRunError: see `stream`; a stall; devices that fail and no node to go to.
        """
        try:
            self._map(batch_size)
        finally:
            self._meters.end()

    @cached_property
    def _meters(self) -> Meters:
        return Meters(self.folder.stage, self.context.cluster, self.producer is not None)

    def _map(self, batch_size: int) -> None:
        blame, size, silent_before = Blame(), batch_size, len(self.expected) + 1
        todo = self.ledger.uncommitted(self.expected)
        overlaps = self._pools[0].overlap > 1
        while len(todo):
            # a process that dies takes along whatever it works on
            isolated = size == 1 and not overlaps
            broke = blame.broke.copy()
            verdict = self._pass(todo, size, blame, overlaps)
            if verdict is not None:
                self._avoid(verdict)
                left = ids_without(self.ledger.uncommitted(self.expected), verdict.image_ids)
                todo = pa.chunked_array([*id_column(verdict.image_ids).chunks, *left.chunks])
                continue
            todo = self.ledger.uncommitted(todo)
            if len(todo):  # a process may have died between its commit and its word
                scan(self.context, self.folder, self.ledger)
                silent, todo = len(todo), self.ledger.uncommitted(todo)
                self.progress.advance(silent - len(todo))
            if isolated:
                # one that broke a device in this pass; else only its process died
                left = todo.to_pylist()
                again = {i for i in left if broke[i] < blame.broke[i] < TRIES}
                alone = [i for i in left if blame.broke[i] == broke[i]]
                if 1 < len(alone) < silent_before:
                    # a process that died may have taken a neighbour along that was in its queue
                    again.update(alone)
                silent_before = len(alone)
                self._poison([i for i in left if i not in again], blame)
                todo = id_column([i for i in left if i in again])
            size, overlaps = 1, False

    def _pass(
        self, todo: pa.ChunkedArray, size: int, blame: Blame, overlaps: bool
    ) -> Verdict | None:
        """Send the images once; returns the node that was found at fault, which ends the pass."""
        cluster, stage = self.context.cluster.now(), self.folder.stage
        runtime = self.context.config.runtime
        pools = [cluster.placed(pool) for pool in self._pools]
        if not overlaps:
            pools = [replace(pool, overlap=1) for pool in pools]
        for one in pools:
            cluster.require(
                f"{stage}: one worker",
                cpus=one.cpus,
                gpus=one.gpus,
                memory=one.memory,
                labels=one.labels,
            )
        producer = None if self.producer is None else replace(self.producer, pool=pools[0])
        # rows of the manifest alone can be read in any order
        if pools[0].gpus and [*self.inputs] == ["manifest"]:
            todo = sizes_together(todo, self.inputs["manifest"])
        chunks = make_chunks(todo, self.inputs, size)
        limits = Limits(
            runtime.stall_seconds,
            runtime.nodes_seconds,
            self.progress.set_note,
            Sizes(cluster, self._pools, len(chunks), self._resized),
        )
        try:
            results = stream(chunks, self.factory, self.output, pools[-1], limits, producer)
            with contextlib.closing(results):  # frees the pools' CPUs, whatever happens
                for counts in results:
                    self.ledger.add(counts)
                    blame.add(counts)
                    self.sent += counts["sent"]
                    self.mapped += counts["images"] - counts["errors"]
                    self.progress.advance(counts["images"], counts["errors"])
                    said = {name: counts[name] for name in _IN_EVENTS}
                    passes = {name: counts[name] + counts[f"producer_{name}"] for name in PASSES}
                    self.network.update(passes)
                    kinds = json.loads(counts["kinds"])
                    self.context.events.write("chunk", stage=stage, kinds=kinds, **said, **passes)
                    left = self.progress.total - self.progress.done
                    self._meters.chunk(counts, kinds, left)
                    if counts["fault"]:
                        self._say_fault(counts["fault"])
                    if released := blame.second_opinion():
                        cluster.trust(released)
                    verdict = blame.verdict(
                        lambda node: cluster.elsewhere(self._pools[0], node) > 0
                    )
                    if verdict is not None:
                        return verdict
                    check_budget(self.folder, len(self.ledger.failed), self.budget)
                    if blame.faults > max(MOST_FAULTS, self.budget):
                        raise MayPassError(
                            f"{stage}: devices failed {blame.faults} times on several machines; "
                            f"the last: {next(reversed(blame.texts.values()))}. What is finished "
                            "stays. Check the GPU driver and the container image"
                        )
        except StalledError as error:
            named = _named(self.ledger.uncommitted(todo))
            raise MayPassError(f"{stage}: {error}\n  not finished: {named}") from error
        return None

    @property
    def _pools(self) -> list[Pool]:
        """As they were asked for. Devices may fail in the first of two, which holds the network."""
        return [self.pool] if self.producer is None else [self.producer.pool, self.pool]

    @property
    def batches(self) -> dict[str, float]:
        """Means over passes of the network: `views_per_pass` and `filled`, as far as known."""
        network = self.network
        found: dict[str, float] = {}
        if network["passes"]:
            found["views_per_pass"] = round(network["views"] / network["passes"], 2)
        if network["room"]:
            found["filled"] = round(network["pixels"] / network["room"], 3)
        return found

    def _resized(self, there: Sequence[int]) -> None:
        self._meters.resize(there[0])
        self.context.events.write("pools_resized", stage=self.folder.stage, workers=list(there))

    def _say_fault(self, fault: str) -> None:
        about = json.loads(fault)
        self.context.events.write("machine_fault", stage=self.folder.stage, **about)
        self.context.progress.message(
            f"{self.folder.stage}: {about['host']}, process {about['process']} is ended: "
            f"{about['text']}"
        )

    def _avoid(self, verdict: Verdict) -> None:
        """Keep away from a node; its error rows are withdrawn."""
        stage, cluster = self.folder.stage, self.context.cluster
        named = f"{verdict.host} (node {verdict.node[:6]})"
        if not cluster.elsewhere(self._pools[0], verdict.node):
            raise MayPassError(
                f"{stage}: the machine {named} is at fault: {verdict.why}. No other node can do "
                "its work. Fix it or add a node, then run the same command again; what is "
                "finished stays."
            )
        cluster.avoid(verdict.node, f"{named}: {verdict.why}")
        withdrawn = self.ledger.withdraw(verdict.error_parts, verdict.image_ids)
        self.progress.advance(-withdrawn, -withdrawn)
        self.context.events.write(
            "node_avoided",
            stage=stage,
            node=verdict.node,
            of_host=verdict.host,
            why=verdict.why,
            withdrawn=withdrawn,
        )
        again = f"; {withdrawn} error rows are withdrawn, their images run again" * bool(withdrawn)
        self.context.progress.message(f"{stage}: {named} is avoided: {verdict.why}{again}")

    def _poison(self, image_ids: Sequence[str], blame: Blame) -> None:
        """Error rows of images whose process died or broke each time."""
        if not image_ids:
            return
        places = self.inputs["manifest"].select(image_ids).locations()
        log = "logs/ray.log"
        if storage.is_remote(self.context.run_dir):
            log = "logs/ray-data/ of Ray's session on the driver's node"
        stage, rows = self.folder.stage, []
        for image_id in image_ids:
            uri, row = places[image_id]
            image = tables.read_rows(uri, [row])[0]
            message = f"the worker process died each time it took this image, or failed: see {log}"
            if image_id in blame.texts:
                message = f"its process's device failed each time: {blame.texts[image_id]}"
            rows.append(ErrorRow(image_id, stage, "internal", message, image.get("uri") or ""))
        self.ledger.fail(rows)
        self.progress.advance(len(rows), len(rows))


def scan(context: RunContext, folder: StageFolder, ledger: Ledger) -> None:
    """Read the folder; damaged parts are deleted and named."""
    for uri in ledger.scan():
        context.events.write("broken_part", stage=folder.stage, uri=uri)
        context.progress.message(f"{folder.stage}: {uri} is damaged; its images run again")


def check_budget(folder: StageFolder, failed: int, budget: int) -> None:
    """Raise BudgetExceededError where more images failed than may."""
    if failed > budget:
        rows = tables.read_errors(folder.errors_uri)
        raise BudgetExceededError(folder.stage, failed, budget, rows)


def _named(image_ids: pa.ChunkedArray) -> str:
    more = len(image_ids) - _MOST_NAMED
    named = ", ".join(image_ids.slice(0, _MOST_NAMED).to_pylist())
    return named + (f" and {more} more images" if more > 0 else "")
