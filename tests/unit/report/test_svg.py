"""Axes and curves, with pixels worked out from the margins."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest

from trd_ray.report.charts import group, number, percent, smooth
from trd_ray.report.svg import Series, Size, Whiskers, line_chart, stacked_bars, ticks

SIZE = Size(width=160, height=134)
"""Less the margins (46 + 14, 10 + 24) a plot of 100 by 100."""


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 0.97, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 37, [0, 10, 20, 30, 40]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 3e-6, [0, 1e-6, 2e-6, 3e-6]),
    ],
)
def test_ticks_cover_the_range_in_round_steps(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def readout(svg):
    return json.loads(unescape(re.search(r'data-readout="(.*?)"', str(svg))[1]))


def test_a_line_goes_through_its_points_and_breaks_at_gaps():
    series = Series(name="s", css="c", xs=[0, 1, 2, 3], ys=[0.0, 1.0, None, 0.5])
    svg = line_chart([series], label="l", y_format=percent, size=SIZE, y_range=(0, 1))
    # x reaches from -0.03 to 3.03: pixel 46 + 100 * (x + 0.03) / 3.06. y: 110 - 100 * y.
    assert 'd="M47.0 110.0L79.7 10.0M145.0 60.0"' in svg
    assert '<circle class="dot c" cx="145.0" cy="60.0"' in svg  # alone, so a line would not show it
    assert readout(svg) == [
        [47.0, "step 0", [["c", "s", "0.0%"]]],
        [79.7, "step 1", [["c", "s", "100.0%"]]],
        [145.0, "step 3", [["c", "s", "50.0%"]]],
    ]


def test_whiskers_show_their_interval():
    whiskers = Whiskers(name="w", css="c", xs=[5], ys=[0.5], lows=[0.25], highs=[0.75])
    svg = line_chart([], whiskers=[whiskers], label="l", y_format=percent, size=SIZE, y_range=(0, 1))
    assert "M96.0 85.0V35.0" in svg
    assert readout(svg)[0][2] == [["c", "w", "50.0% (25.0% to 75.0%)"]]


def test_bars_stand_on_each_other():
    parts = [Series(name=n, css=n, xs=[1, 2], ys=[1.0, 1.0]) for n in ("a", "b")]
    svg = stacked_bars(parts, label="l", y_format=number, size=SIZE)
    heights = re.findall(r'class="area (.)" d="M[\d.]+ ([\d.]+)V([\d.]+)h', str(svg))
    assert heights == [("a", "110.0", "60.0"), ("b", "60.0", "10.0")]


def test_labels_and_names_are_escaped():
    series = Series(name='<i>"', css="c", xs=[1], ys=[1.0])
    svg = line_chart([series], label='"><script>', y_format=number)
    assert "<script>" not in svg
    assert readout(svg)[0][2][0][1] == '<i>"'


def test_grouping_and_smoothing():
    class Step:
        def __init__(self, n):
            self.learner_step = n

    def value(step):
        return None if step.learner_step in (3, 4) else float(step.learner_step)

    xs, ys = group([Step(n) for n in range(1, 8)], value, most=4)
    assert xs == [2.0, 4.0, 6.0, 7.0]
    assert ys == [1.5, None, 5.5, 7.0]
    assert smooth(ys) == ys
    ramp = smooth([float(i) for i in range(50)])  # window 3
    assert (ramp[0], ramp[1], ramp[49]) == (0.5, 1.0, 48.5)


def test_numbers():
    assert [number(v) for v in (0.000123, 1.2345, 999.4, 999.6, 12345)] == [
        "0.000123", "1.23", "999", "1,000", "12,345",
    ]  # fmt: skip
    assert percent(0.4951) == "49.5%"
