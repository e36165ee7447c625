from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest

from pmm_ray.report.charts import loss_chart, nice_ticks
from pmm_ray.report.run_data import Curve


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.0, 0.0123), (3.0, 20_000.0), (0.0, 7.3), (5.0, 5.0)]
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    assert len({round(b - a, 9) for a, b in itertools.pairwise(ticks)}) == 1


def test_a_long_curve_is_thinned_and_stays_inside_the_picture() -> None:
    steps = tuple(range(20_000))
    losses = tuple(3.0 / (1 + step / 100) for step in steps)
    svg = ElementTree.fromstring(loss_chart(Curve("train", steps, losses, losses)))
    line = svg.find("polyline")
    assert line is not None
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    assert 100 <= len(points) <= 160
    assert all(0 <= x <= 340 and 0 <= y <= 190 for x, y in points)
    assert points[0][1] < points[-1][1]  # a falling loss goes down the page


def test_losses_that_are_not_finite_are_left_out() -> None:
    curve = Curve("train", (0, 1, 2), (1.0, math.nan, math.inf), (0.1, 0.1, 0.1))
    assert "nan" not in loss_chart(curve)
    assert loss_chart(Curve("train", (0,), (math.nan,), (0.1,))) == ""
