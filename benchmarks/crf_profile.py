"""Where the CRF engine's time goes, kernel by kernel, beside what streaming its arrays costs."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import crf_inputs as inputs
import numpy as np

from latticecrf import CrfParameters, DenseCrf
from latticecrf.lattice import lattice, placing
from latticecrf.mean_field import binary, freezing, joint, solver

PLACING = ("embed", "number_vertices", "sort_vertices", "renumber", "link_vertices")
BUILDING = ("chain_pieces", "first_steps", "group_pixels", "corner_slots", "scale_weights")
KERNELS: dict[Any, tuple[str, ...]] = {
    placing: PLACING,
    lattice: (*BUILDING, "filter_apart", "spread", "collect", "filter_in_place"),
    solver: ("log_ratio",),
    binary: ("pack", "logistic", "lower", "unpack"),
    joint: (
        *("invert_sums", "load_scores", "unpack", "unload", "columns", "fill_implied"),
        *("freezing_costs", "grow", "highest", "softmax"),
    ),
    freezing: ("largest_products",),
}
NAMES = {
    "filter_apart": "bilateral filter",
    "spread": "bilateral filter",
    "collect": "bilateral filter",
    "filter_in_place": "spatial filter",
}


def print_profile(data: list[inputs.Example]) -> None:
    """CPU milliseconds of every kernel, median over the images, and the streaming bound."""
    rate = streaming_rate()
    print(f"a copy of 64 MB moves {rate / 1e9:.1f} GB/s, reads and writes counted")
    for count in (1, 4):
        problem = functools.partial(_binary, count=count)
        _print(f"binary, K = {count}", data, problem, bound_binary(data, count) / rate)
    for labels in (21, 91):
        for kind in ("peaked", "dense"):
            problem = functools.partial(_joint, labels=labels, kind=kind)
            bound = bound_joint(data, labels) / rate if kind == "dense" else None
            _print(f"joint, M = {labels}, {kind}", data, problem, bound)


def streaming_rate() -> float:
    """Bytes a second that a plain copy reads and writes together."""
    source = np.ones(16_000_000, np.float32)
    target = np.empty_like(source)
    times = []
    for _ in range(7):
        start = time.thread_time()
        np.copyto(target, source)
        times.append(time.thread_time() - start)
    return 2 * source.nbytes / statistics.median(times)


def bound_binary(data: list[inputs.Example], count: int) -> float:
    """Bytes that ten iterations must move if every array passes once: plans, rows and messages."""
    lanes = 1 << (count - 1).bit_length()
    return _bound(data, CrfParameters.ppmg(), 8 * 4.0 * lanes, 1)


def bound_joint(data: list[inputs.Example], labels: int) -> float:
    """The same for M labels of which none is frozen.

    A result could become a posterior before it leaves the cache: the bound counts two passes less.
    All but one label are filtered, 16 to 24 at a time, which reads the plans anew.
    """
    blocks = max(1, -(-(labels - 9) // 16))
    return _bound(data, CrfParameters.segmentation(), 6 * 4.0 * labels, blocks)


def _bound(
    data: list[inputs.Example], parameters: CrfParameters, passes: float, blocks: int
) -> float:
    moved = []
    for example in data:
        bank = DenseCrf(example.image, parameters)._solver._bank  # type: ignore[attr-defined]
        plans = 0
        for built in bank._lattices:
            parts = {id(part): part for part in built.plan if isinstance(part, np.ndarray)}
            plans += sum(part.nbytes for part in parts.values()) + built.link.nbytes
        # Rows: read by both filters, message written and read, result written; the update reads
        # the base and the result and writes the posterior.
        pixels = bank.places.size
        moved.append(10 * (blocks * plans + passes * pixels))
    return statistics.median(moved)


def _binary(example: inputs.Example, seed: int, count: int) -> Callable[[], Any]:
    u = inputs.classes(example.cam, count)
    b = (1 - u) ** inputs.ALPHA
    return lambda: DenseCrf(example.image, CrfParameters.ppmg()).binary(u, b)


def _joint(example: inputs.Example, seed: int, labels: int, kind: str) -> Callable[[], Any]:
    scores = inputs.scores(kind, example, labels, seed, None)
    return lambda: DenseCrf(example.image, CrfParameters.segmentation()).joint(scores)


def _print(title: str, data: list[inputs.Example], problem: Any, bound: float | None) -> None:
    spent: dict[str, float] = {}
    originals = {(m, name): getattr(m, name) for m, names in KERNELS.items() for name in names}

    def timed(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.thread_time()
            result = kernel(*arguments)
            label = NAMES.get(name, name)
            spent[label] = spent.get(label, 0.0) + time.thread_time() - start
            return result

        return call

    for (module, name), kernel in originals.items():
        setattr(module, name, timed(name, kernel))
    rows: dict[str, list[float]] = {}
    for seed, example in enumerate(data):
        call = problem(example, seed)
        for _ in range(3):
            spent.clear()
            start = time.thread_time()
            call()
            total = time.thread_time() - start
        rest = total - sum(spent.values())
        for name, value in (spent | {"NumPy": rest, "everything": total}).items():
            rows.setdefault(name, []).append(value)
    for (module, name), kernel in originals.items():
        setattr(module, name, kernel)
    print(f"\n{title}: CPU ms an image, median of {len(data)}")
    for name, values in rows.items():
        print(f"  {name:18} {statistics.median(values) * 1e3:8.2f}")
    if bound is not None:
        print(f"  {'streaming bound':18} {bound * 1e3:8.2f}")
