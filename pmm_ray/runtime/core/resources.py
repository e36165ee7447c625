"""What the connected cluster has, node by node, and what may be asked of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pmm_ray.runtime.core.errors import CannotRunError

NODE_ID = "ray.io/node-id"
ACCELERATOR = "ray.io/accelerator-type"
# of the cards that Ray knows by name
_WITHOUT_BFLOAT16 = {"K80", "P4", "P100", "V100", "T4"}
_NOT_IN = re.compile(r"!in\((.*)\)")
# Ray counts in ten-thousandths
_EPSILON = 1e-6


@dataclass(frozen=True)
class Pool:
    """How many workers, and what each asks of the cluster."""

    size: int
    actors: bool = False
    """Actors keep a model between chunks."""
    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    """Bytes that a worker reserves; 0: none."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray's label selector for the nodes it may run on; empty: any."""
    overlap: int = 1
    """Chunks that an actor works on at once, each in a thread, see `mapping.overlap`."""
    follows: bool = False
    """Whether the size follows the cluster, see `ClusterResources.placed`."""


@dataclass(frozen=True)
class Node:
    """A node that is there, or one that an autoscaler may add."""

    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    """For tasks, bytes; 0: unknown."""
    labels: Mapping[str, str] = field(default_factory=dict)
    node_id: str = ""
    """Ray's; empty: the node is not there yet."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """A row of `ray.nodes()`."""
        has = row.get("Resources") or {}
        cpus, gpus, memory = (float(has.get(name, 0.0)) for name in ("CPU", "GPU", "memory"))
        return cls(cpus, gpus, memory, row.get("Labels") or {}, str(row["NodeID"]))

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Whether a label selector (`value` or `!in(a,b)`) chooses the node."""
        own = {NODE_ID: self.node_id} | dict(self.labels)
        for key, wanted in labels.items():
            others = _NOT_IN.fullmatch(wanted)
            if others and own.get(key) in others[1].split(","):
                return False
            if not others and own.get(key) != wanted:
                return False
        return True

    def room(self, cpus: float, gpus: float = 0.0, memory: float = 0.0) -> int:
        """How many workers of this size the empty node holds."""
        pairs = [(self.cpus, cpus), (self.gpus, 1 / on_one_gpu(gpus) if 0 < gpus < 1 else gpus)]
        pairs += [(self.memory, memory)] if self.memory else []
        counts = [int(has / asks + _EPSILON) for has, asks in pairs if asks > 0]
        if not counts:  # nothing is asked for: only a node that works at all can take it
            return int(self.cpus + self.gpus > 0)
        return min(counts)

    def __str__(self) -> str:
        labels = "".join(f" {k}={v}" for k, v in self.labels.items() if not k.startswith("ray.io/"))
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus:g} CPUs{gpus}{labels}"


def amounts(cpus: float = 0, gpus: float = 0, memory: float = 0) -> str:
    """What is asked for, of each that is: `1 CPUs and 2.5 GiB of memory`."""
    parts = [f"{cpus:g} CPUs"] * (cpus > 0) + [f"{gpus:g} GPUs"] * (gpus > 0)
    return " and ".join(parts + [f"{memory / 1024**3:.1f} GiB of memory"] * (memory > 0))


def on_one_gpu(gpus: float) -> int:
    """How many workers with this share of a GPU fit on one: Ray splits no worker over two."""
    return int(1 / gpus + _EPSILON) if 0 < gpus <= 1 else 1


def away_from(labels: Mapping[str, str], node_ids: list[str]) -> dict[str, str]:
    """A label selector that also keeps away from some nodes."""
    known = _NOT_IN.fullmatch(labels.get(NODE_ID, ""))
    avoided = sorted({*(known[1].split(",") if known else ()), *node_ids})
    return dict(labels) | ({NODE_ID: f"!in({','.join(avoided)})"} if avoided else {})


@dataclass(frozen=True)
class ClusterResources:
    """What the connected cluster has in all."""

    cpus: float
    gpus: float
    nodes: int
    local: bool
    """Whether this process started the Ray it uses."""
    cpu_labels: Mapping[str, str] = field(default_factory=dict)
    """Of the nodes where stages without a GPU run, as configured; empty: see `spares_gpus`."""
    spares_gpus: bool = False
    """Whether stages without a GPU keep away from the nodes that have one."""
    offered: tuple[Node, ...] = ()
    """Nodes that are there or that an autoscaler may add; empty: one with all that there is."""
    began_with: tuple[Node, ...] = ()
    """What was offered when the driver connected: a lost node may come back."""
    look: Callable[[], ClusterResources] | None = None
    """Reads the cluster again; None: it does not change."""
    avoided: dict[str, str] = field(default_factory=dict)
    """Nodes that were found at fault, by Ray's id, with the reason."""

    def now(self) -> ClusterResources:
        """The cluster as it is at this moment, without the nodes that were found at fault.

        Whether stages use GPUs stays as it was when the driver connected: results would differ. So
        does whether the others keep away from GPUs: they do not leave nodes when smaller ones join.
        """
        if self.look is None:
            return self
        seen = self.look()
        return replace(
            seen,
            spares_gpus=self.spares_gpus,
            gpus=max(seen.gpus, 1.0) if self.gpus >= 1 else 0.0,
            began_with=self.began_with or self.offered,
            look=self.look,
            avoided=self.avoided,
        )

    @property
    def _every(self) -> Sequence[Node]:
        return self.offered or (Node(self.cpus, self.gpus),)

    @property
    def places(self) -> list[Node]:
        """The nodes where work may run."""
        return [node for node in self._every if node.node_id not in self.avoided]

    @property
    def cpu_nodes(self) -> list[Node]:
        """Where stages without a GPU run, avoided nodes too; all nodes where each has a GPU."""
        if self.cpu_labels:
            return [node for node in self._every if node.accepts(self.cpu_labels)]
        spared = [node for node in self._every if node.cpus and not node.gpus]
        return spared if self.spares_gpus and spared else [*self._every]

    @property
    def cpu_stage_labels(self) -> Mapping[str, str]:
        """Ray's label selector for those of them that are there; empty: any node."""
        others = [n for n in self._every if n.gpus and n.node_id and n not in self.cpu_nodes]
        return self.cpu_labels or away_from({}, [node.node_id for node in others])

    @property
    def node_memory(self) -> float:
        """Memory that the largest of them offers to tasks, bytes; 0: unknown."""
        return max((node.memory for node in self.cpu_nodes if node.cpus), default=0.0)

    def facts(self) -> dict[str, Any]:
        """For the record of a run: plain values, nodes of one shape counted."""
        shapes = Counter(str(node) for node in self.places)
        hidden = ("offered", "began_with", "look")
        own = {k: v for k, v in self.__dict__.items() if k not in hidden}
        return own | {"cpu_stage_labels": self.cpu_stage_labels, "shapes": dict(shapes)}

    def has_bfloat16(self) -> bool:
        """Whether there are GPUs, and all of them, named by Ray's label, compute in bfloat16."""
        cards = {node.labels.get(ACCELERATOR, "") for node in self.places if node.gpus}
        return self.gpus >= 1 and not cards & {"", *_WITHOUT_BFLOAT16}

    def default_train_workers(self) -> int:
        """One per GPU; on CPUs 2, or 1 on a single core."""
        if self.gpus >= 1:
            return int(sum(node.gpus for node in self.places))
        return 2 if self.cpus >= 2 else 1

    def default_actors(self, gpus_each: float = 1.0) -> int:
        """Model copies for inference: as many as share the GPUs, else one per CPU of stages
        without a GPU."""
        return int(self.gpus) * on_one_gpu(gpus_each) if self.gpus >= 1 else self.default_tasks()

    def default_tasks(self) -> int:
        """Tasks at once of a stage without a GPU: one per CPU where it runs."""
        return max(1, int(sum(node.cpus for node in self.cpu_nodes)))

    def room(
        self,
        cpus: float,
        gpus: float = 0.0,
        memory: float = 0.0,
        labels: Mapping[str, str] | None = None,
    ) -> int:
        """How many workers of this size fit, each whole on one node, when nothing else runs.

        On the nodes that are there now or, if that is more, those that the run began with.
        """

        def on(nodes: Iterable[Node]) -> int:
            return sum(
                node.room(cpus, gpus, memory)
                for node in nodes
                if node.node_id not in self.avoided and node.accepts(labels or {})
            )

        return max(on(self.places), on(self.began_with))

    def placed(self, pool: Pool) -> Pool:
        """A pool for the nodes that are there now.

        One that follows the cluster has a worker for each CPU, or as many as share the GPUs. It is
        kept away from the avoided nodes, with as many workers as the others hold.
        """
        if pool.follows:
            own = [node for node in self.cpu_nodes if node.accepts(pool.labels)]
            on_gpus = pool.gpus and self.gpus >= 1
            cpus = sum(node.cpus for node in own if node.node_id not in self.avoided)
            size = self.default_actors(pool.gpus) if on_gpus else int(cpus)
            pool = replace(pool, size=max(1, size))
        if not self.avoided:
            return pool
        labels = away_from(pool.labels, list(self.avoided))
        room = self.room(pool.cpus, pool.gpus, pool.memory, pool.labels)
        return replace(pool, labels=labels, size=max(1, min(pool.size, room)))

    def held(self, pool: Pool) -> int:
        """How many of a pool's workers the nodes that are there hold, none of those to be added."""
        there = [n for n in self.places if n.node_id or not self.offered]
        rooms = [n.room(pool.cpus, pool.gpus, pool.memory) for n in there if n.accepts(pool.labels)]
        return min(pool.size, sum(rooms))

    def elsewhere(self, pool: Pool, node_id: str) -> int:
        """How many of a pool's workers other nodes than this one hold, there or to be added."""
        import ray

        there = [Node.of(row) for row in ray.nodes() if row["Alive"]]
        may_come = [node for node in self.offered if not node.node_id]
        return sum(
            node.room(pool.cpus, pool.gpus, pool.memory)
            for node in [*there, *may_come]
            if node.node_id not in (node_id, *self.avoided) and node.accepts(pool.labels)
        )

    def avoid(self, node_id: str, why: str) -> None:
        """Give no more work to a node, in this stage and those after it."""
        self.avoided[node_id] = why

    def trust(self, node_id: str) -> None:
        """Give work to a node again."""
        self.avoided.pop(node_id, None)

    def require(
        self,
        what: str,
        *,
        cpus: float = 0,
        gpus: float = 0,
        memory: float = 0,
        workers: int = 1,
        labels: Mapping[str, str] | None = None,
        key: str = "",
    ) -> None:
        """Refuse at once what the nodes can never hold, each worker whole on one of them.

        Args:
            what: who asks, for the message.
            cpus, gpus, memory: of each worker; bytes.
            workers: at the same time.
            labels: of the nodes it may use.
            key: configuration key to lower, for the message.

        Raises:
            CannotRunError: with the need, what nodes have, and the key.
        """
        room = self.room(cpus, gpus, memory, labels)
        if room >= workers:
            return
        selected = ", ".join(f"{name}={value}" for name, value in (labels or {}).items())
        on = f" on nodes with {selected}" if selected else ""
        each = amounts(cpus, gpus, memory) or "a node that works"
        need = each if workers == 1 else f"{workers} times {each}, each time on one node"
        has = [(n, amounts(memory=n.memory if memory else 0)) for n in self.places]
        shapes = Counter(
            (" and ".join(filter(None, (str(n), own))), n.room(cpus, gpus, memory))
            for n, own in has
            if n.accepts(labels or {})
        )
        there = "; ".join(
            f"{count} x ({shape}) {'holds' if count == 1 else 'hold'} {holds} each"
            for (shape, holds), count in sorted(shapes.items())
        )
        less = f"set {key} lower" if key else "ask for less"
        more = "add nodes, or name those that an autoscaler may add in runtime.autoscaled_nodes"
        if self.local:
            more = "or connect to a cluster: --address, RAY_ADDRESS"
        raise CannotRunError(
            f"{what} needs {need}{on}, and there is room for {room}: "
            f"{there or 'there are none of these nodes'}. You can {less}, {more}."
        )
