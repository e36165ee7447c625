"""Loss curves and parameter sweeps as inline SVG, drawn in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pmm_ray.report.run_data import Curve

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 8, 10, 24
_MOST_POINTS = 160
_TICKS = 4  # of an axis, about


def loss_chart(curve: Curve) -> Markup:
    """The loss over the steps of one training: the mean of neighbouring steps, and their range.

    Only numbers enter the markup.
    """
    steps, means, lows, highs = _bin(curve.steps, curve.losses)
    if not steps:
        return Markup("")
    y_ticks = nice_ticks(0.0, max(means) or 1.0)
    x_ticks = nice_ticks(steps[0], steps[-1])
    top = y_ticks[-1]
    span = max(steps[-1] - steps[0], 1)

    def x(step: float) -> float:
        return _LEFT + (step - steps[0]) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(loss: float) -> float:
        share = min(max(loss, 0.0) / top, 1.0)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def points(losses: Sequence[float]) -> list[str]:
        return [f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, losses, strict=True)]

    inside = [tick for tick in x_ticks if steps[0] <= tick <= steps[-1]]
    parts = _axes({tick: x(tick) for tick in inside}, {tick: y(tick) for tick in y_ticks})
    band = points(highs) + points(lows)[::-1]
    parts.append(f'<polygon class="band" points="{" ".join(band)}"/>')
    parts.append(f'<polyline class="line" points="{" ".join(points(means))}"/></svg>')
    return Markup("".join(parts))


def sweep_chart(details: Mapping[str, Any], score: str) -> Markup:
    """A score over the values of the first swept parameter, a line for each setting of the others.

    Args:
        details: of a sweep's summary: `fields`, `combinations`, `chosen`.
        score: the name of one of the combinations', a share.

    Only numbers and the names of our own parameters enter the markup.
    """
    first, *others = details["fields"]
    values = sorted({row[first] for row in details["combinations"]})
    lines: dict[tuple[float, ...], list[Mapping[str, float]]] = {}
    for row in details["combinations"]:
        if row[score] is not None and math.isfinite(row[score]):
            lines.setdefault(tuple(row[name] for name in others), []).append(row)
    scores = [row[score] * 100 for rows in lines.values() for row in rows]
    if not scores:
        return Markup("")
    y_ticks = nice_ticks(min(scores), max(scores))
    low, high = y_ticks[0], y_ticks[-1]

    def x(value: float) -> float:
        share = (values.index(value) + 0.5) / len(values)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(percent: float) -> float:
        return _HEIGHT - _BOTTOM - (percent - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = _axes({value: x(value) for value in values}, {tick: y(tick) for tick in y_ticks})
    for setting, rows in lines.items():
        rows = sorted(rows, key=lambda row: row[first])
        points = " ".join(f"{x(r[first]):.1f},{y(r[score] * 100):.1f}" for r in rows)
        chosen = all(details["chosen"][n] == v for n, v in zip(others, setting, strict=True))
        parts.append(f'<polyline class="line{"" if chosen else " other"}" points="{points}"/>')
        if others:
            name = ", ".join(f"{n} {v:g}" for n, v in zip(others, setting, strict=True))
            last = rows[-1][score] * 100
            parts.append(
                f'<text x="{_WIDTH - _RIGHT}" y="{y(last) - 5:.1f}" text-anchor="end">{name}</text>'
            )
    best = max(scores)
    parts.append(
        f'<circle class="mark" cx="{x(details["chosen"][first]):.1f}" cy="{y(best):.1f}" r="4"/>'
    )
    return Markup("".join(parts) + "</svg>")


def _axes(x_places: Mapping[float, float], y_places: Mapping[float, float]) -> list[str]:
    """The beginning of a chart: the numbers at the axes, each with its place, and the grid."""
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    for tick, y in y_places.items():
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick, x in x_places.items():
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{tick:g}</text>')
    return parts


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`; at least two."""
    step = (high - low) / _TICKS
    if step <= 0:
        return [low, low + 1]
    power = 10.0 ** math.floor(math.log10(step))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999)
    first = math.floor(low / step)
    return [round((first + i) * step, 10) for i in range(math.ceil(high / step) - first + 1)]


def _bin(
    steps: Sequence[int], values: Sequence[float]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Means, minima and maxima of runs of neighbours; values that are not finite are left out."""
    points = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    size = max(1, math.ceil(len(points) / _MOST_POINTS))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return (
        [sum(s for s, _ in g) / len(g) for g in groups],
        [sum(v for _, v in g) / len(g) for g in groups],
        [min(v for _, v in g) for g in groups],
        [max(v for _, v in g) for g in groups],
    )
