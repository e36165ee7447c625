"""Passes of a network over views of several photographs: grouped by size, bounded by pixels.

See docs/decisions/014-batches-over-images.md.
"""

# b: views of a piece; C: classes; h, w: of a view; h', w': of what the network returns, px.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from pmm_ray.nets.halving import in_halves

_PIXELS_ON_GPU = 32 * 448**2
"""Of a pass: 32 of the paper's windows."""
# What may wait for others of its size: photographs, and their views' px over those of a pass; and
# what these photographs may keep on the device, bytes.
_PHOTOGRAPHS = 16
_WAITING = 4
_HELD = 2**30


class Piece(NamedTuple):
    """What goes through the network undivided: a view, or a view and its mirror image."""

    inputs: tuple[Tensor, ...]
    """Normalised views, float32 [b, 3, h, w], and the network's further arguments, [b, ...]."""
    take: Callable[[Tensor], None]
    """Gets what the network makes of them, [b, C, h', w']."""


class Subject(Protocol):
    """A photograph on its way through the passes."""

    def pieces(self) -> Iterator[Piece]:
        """Its views, each made when it is asked for."""

    @property
    def held(self) -> int:
        """Bytes that it keeps on the device until its last view was seen."""


S = TypeVar("S", bound=Subject)


@dataclass
class _UnderWay(Generic[S]):
    """A photograph of which some views were not seen yet."""

    subject: S
    left: int = 1
    """Pieces that wait, and one for those that are not made yet."""


class Batches:
    """A network that sees views of several photographs together.

    Args:
        network: takes a piece's `inputs`; maps each row of a batch on its own.
        pixels: of a pass, at least one piece; `auto`: 6.4 million on a GPU. On a CPU a piece alone,
            since larger batches leave its caches (benchmarks/classifier.py).
        device: where the network is.
    """

    def __init__(
        self, network: Callable[..., Tensor], pixels: int | Literal["auto"], device: torch.device
    ) -> None:
        self._network = network
        automatic = 0 if device.type == "cpu" else _PIXELS_ON_GPU
        self._pixels = automatic if pixels == "auto" else pixels
        self._counts: Counter[str] = Counter()
        self._counting = Lock()

    @property
    def together(self) -> int:
        """Photographs that may be taken before the first is given back."""
        return _PHOTOGRAPHS if self._pixels else 1

    def counted(self) -> dict[str, int]:
        """Since the last call: `passes`; their `views` and `pixels`; `room`, the pixels that would
        have fitted into them (0 where each piece is alone)."""
        with self._counting:
            counts, self._counts = self._counts, Counter()
        return {name: counts[name] for name in ("passes", "views", "pixels", "room")}

    @torch.inference_mode()
    def __call__(self, subjects: Iterable[S]) -> Iterator[S]:
        """Show the network all pieces of all photographs.

        Yields:
            The photographs in their order, each after its last piece was taken.

        Raises:
            Exception: of the network or of a photograph; the photographs that were not given back
                can be tried again, each alone.
        """
        groups: dict[torch.Size, list[tuple[_UnderWay[S], Piece]]] = {}
        under_way: list[_UnderWay[S]] = []
        for subject in subjects:
            under_way.append(last := _UnderWay(subject))
            for piece in subject.pieces():
                last.left += 1
                size = piece.inputs[0].shape
                groups.setdefault(size, []).append((last, piece))
                if len(groups[size]) >= self._fitting(size):
                    self._pass(groups.pop(size))
                    yield from _complete(under_way)
            last.left -= 1
            yield from _complete(under_way)
            while self._too_much(groups, under_way):
                # of the oldest photograph: those behind it wait for it
                of_first = [s for s, g in groups.items() if any(o is under_way[0] for o, _ in g)]
                for size in of_first:
                    self._pass(groups.pop(size))
                yield from _complete(under_way)
        for group in groups.values():
            self._pass(group)
        yield from _complete(under_way)

    def _fitting(self, size: torch.Size) -> int:
        """Pieces of a pass."""
        return max(1, self._pixels // _area(size))

    def _too_much(
        self,
        groups: dict[torch.Size, list[tuple[_UnderWay[S], Piece]]],
        under_way: list[_UnderWay[S]],
    ) -> bool:
        waiting = sum(len(group) * _area(size) for size, group in groups.items())
        return (
            len(under_way) >= self.together
            or waiting > _WAITING * self._pixels
            or sum(one.subject.held for one in under_way) > _HELD
        ) and bool(under_way)

    def _pass(self, group: list[tuple[_UnderWay[S], Piece]]) -> None:
        """Show the network pieces of one size."""
        size = group[0][1].inputs[0].shape
        fitting, sizes = self._fitting(size), []

        def network(*inputs: Tensor) -> Tensor:
            sizes.append(len(inputs[0]))
            return self._network(*inputs)

        inputs = zip(*(piece.inputs for _, piece in group), strict=True)
        outputs = in_halves(network, *map(_joined, inputs))
        if len(sizes) > 1 and len(group) > 1:
            # memory ran out, and would again
            self._pixels = max(1, self._pixels // 2)
        for (owner, piece), output in zip(group, torch.split(outputs, size[0]), strict=True):
            piece.take(output)
            owner.left -= 1
        area = _area(size)
        counts = {"passes": 1, "views": sizes[0], "pixels": len(group) * area}
        counts["room"] = fitting * area if self._pixels else 0
        with self._counting:
            self._counts.update(counts)


def _area(size: torch.Size) -> int:
    """Px of a piece, mirror image included."""
    return size[0] * size[2] * size[3]


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _complete(under_way: list[_UnderWay[S]]) -> Iterator[S]:
    """The first photographs, as far as nothing of them is left."""
    while under_way and not under_way[0].left:
        yield under_way.pop(0).subject
