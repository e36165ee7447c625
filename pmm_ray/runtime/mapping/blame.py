"""Whether a failure is an image's or a machine's, judged from where failures happen.

See docs/decisions/007-whose-fault-a-failure-is.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median_low
from typing import Any

# a node may be at fault when its devices failed at this many images: one image breaks any device
_FAULTS = 3
# and at this many times the median of the others: else code or images break every device
_TIMES = 4
# or when a process made this many error rows in a row: fewer than the default error budget of 10
_IN_A_ROW = 8
# or when its share of error rows is this many times that of the others, who did so many images
_TIMES_THE_SHARE = 10
_KNOWN = 50
TRIES = 3
"""How often an image that breaks the device of its process is tried before it is an error row."""
MOST_FAULTS = 20
"""Failures of devices in one stage, after which the run ends."""


@dataclass(frozen=True)
class Verdict:
    """A node that is at fault.

    Attributes:
        node: Ray's id.
        host: its name.
        why: what happened there.
        error_parts: names of the parts of error rows to withdraw.
        image_ids: their images.
    """

    node: str
    host: str
    why: str
    error_parts: Sequence[str]
    image_ids: Sequence[str]


@dataclass
class _Tally:
    """What came from one node."""

    host: str = ""
    devices: bool = False
    """Whether it works in the pool whose devices may fail, the first of two."""
    judged: bool = False
    """Whether it was found at fault, and is avoided."""
    images: int = 0
    errors: int = 0
    in_a_row: dict[int, int] = field(default_factory=dict)
    """By process."""
    faults: list[str] = field(default_factory=list)
    broke_at: set[str] = field(default_factory=set)
    since_success: set[str] = field(default_factory=set)
    parts: dict[str, list[str]] = field(default_factory=dict)
    """Images with error rows, by part."""

    @property
    def longest(self) -> int:
        return max(self.in_a_row.values(), default=0)


class Blame:
    """The judge of one stage's failures."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Tally] = {}
        self._suspects: list[str] = []
        """Nodes of the last report, if it brought an error or a fault."""
        self._blind: tuple[Mapping[str, Any], str] | None = None
        """The place of the last report and its reason, if it did not see what the driver sees."""
        self.faults = 0
        """Failures of devices so far."""
        self._doubted: set[str] = set()  # withdrawn, without a second opinion so far
        self._confirmed = self._refuted = 0
        self._doubts_rows: str | None = None
        self._trusts_rows = False
        self.broke: Counter[str] = Counter()
        """How often a device failed at an image."""
        self.texts: dict[str, str] = {}
        """The last such failure of an image."""

    def add(self, counts: Mapping[str, Any]) -> None:
        """Note what a task reported (see `tasks.run_chunk`)."""
        done, failed = json.loads(counts["done"]), json.loads(counts["failed"])
        failed = self._opinions(done, failed)
        first = counts["earlier"]
        for prefix, of_pool in (("producer_", failed[:first]), ("", failed[first:])):
            node = counts[f"{prefix}node"]
            if node:
                self._rows(node, prefix, counts, len(done), [i for i in of_pool if i])
        nodes = [node for node in (counts["producer_node"], counts["node"]) if node]
        if nodes:
            self._nodes[nodes[0]].devices = True
        if counts["fault"]:
            fault = json.loads(counts["fault"])
            self._fault(fault)
            nodes.append(fault["node"])
        self._blind = (json.loads(counts["at"]), counts["failure"]) if counts["failure"] else None
        # only a node that something failed on can be at fault
        self._suspects = nodes if failed or counts["fault"] else []

    def _opinions(self, done: Sequence[str], failed: Sequence[str]) -> list[str]:
        """The failed images, with '' in place of those that failed on another node, too."""
        refuted, confirmed = self._doubted & {*done}, self._doubted & {*failed}
        self._doubted -= refuted | confirmed
        self._refuted += len(refuted)
        self._confirmed += len(confirmed)
        return ["" if i in confirmed else i for i in failed]

    def _rows(
        self, node: str, prefix: str, counts: Mapping[str, Any], done: int, failed: list[str]
    ) -> None:
        tally = self._nodes.setdefault(node, _Tally())
        tally.host = counts[f"{prefix}host"]
        tally.images += done + len(failed)
        tally.errors += len(failed)
        process = counts[f"{prefix}process"]
        last = min(counts[f"{prefix}in_a_row"], len(failed))
        before = 0 if done else tally.in_a_row.get(process, 0)
        tally.in_a_row[process] = before + last
        if done:
            tally.since_success.clear()
        if failed:
            tally.parts[counts["part"]] = failed

    def _fault(self, fault: Mapping[str, Any]) -> None:
        tally = self._nodes.setdefault(fault["node"], _Tally())
        tally.host = fault["host"]
        tally.devices = True
        tally.faults.append(fault["text"])
        self.faults += 1
        image = fault["image"] or f"start {len(tally.faults)}"
        tally.broke_at.add(image)
        tally.since_success.add(image)
        self.broke[image] += 1
        self.texts[image] = f"{fault['text']} ({fault['host']}, process {fault['process']})"

    def second_opinion(self) -> str | None:
        """A node whose images failed elsewhere, too, and that may work again; returned once."""
        asked = self._confirmed + self._refuted
        if self._doubts_rows is None or asked < _IN_A_ROW:
            return None
        node, self._doubts_rows = self._doubts_rows, None
        if 2 * self._confirmed < asked:
            return None
        self._trusts_rows = True
        self._nodes[node].judged = False
        return node

    def verdict(self, elsewhere: Callable[[str], bool]) -> Verdict | None:
        """The node at fault, if the last report was of one; each is returned once.

        Args:
            elsewhere: whether the work of a node can be done by another.
        """
        if self._blind is not None:
            place, text = self._blind
            self._nodes.setdefault(place["node"], _Tally()).host = place["host"]
            return self._judge(place["node"], text)
        for node in self._suspects:
            tally = self._nodes[node]
            if tally.judged:
                continue
            others = [other for name, other in self._nodes.items() if name != node]
            if why := _device_at_fault(tally, others, partial(elsewhere, node)):
                return self._judge(node, why)
            doubtful = not self._trusts_rows and self._doubts_rows is None
            if doubtful and (why := _rows_at_fault(tally, others)) and elsewhere(node):
                self._doubts_rows = node
                return self._judge(node, why)
        return None

    def _judge(self, node: str, why: str) -> Verdict:
        tally = self._nodes[node]
        tally.judged = True
        images = [i for failed in tally.parts.values() for i in failed]
        parts, tally.parts = list(tally.parts), {}
        self._doubted.update(images)
        return Verdict(node, tally.host, why, parts, images)


def _device_at_fault(
    tally: _Tally, others: Sequence[_Tally], elsewhere: Callable[[], bool]
) -> str | None:
    peers = [other for other in others if other.devices]
    # where every other node was at fault, too, it may be the images
    working = [peer for peer in peers if not peer.judged] or peers
    # not their maximum: several nodes may be sick at once
    usual = median_low([len(peer.faults) for peer in working] or [0])
    if len(tally.broke_at) < _FAULTS or len(tally.faults) < _TIMES * usual:
        return None
    # asked last: it looks at the cluster
    if len(tally.since_success) < _FAULTS and not elsewhere():
        return None
    return f"its device failed at {len(tally.broke_at)} images, last: {tally.faults[-1]}"


def _rows_at_fault(tally: _Tally, others: Sequence[_Tally]) -> str | None:
    others = [other for other in others if not other.judged]
    if tally.longest >= _IN_A_ROW and all(other.longest < _IN_A_ROW for other in others):
        return f"{tally.longest} images failed there in a row, in one process"
    images = sum(other.images for other in others)
    errors = sum(other.errors for other in others)
    if tally.errors < _IN_A_ROW or images < _KNOWN:
        return None
    if tally.errors * images <= _TIMES_THE_SHARE * (errors + 1) * tally.images:
        return None
    return (
        f"{tally.errors} of {tally.images} images failed there, and {errors} of {images} elsewhere"
    )
