"""Charts as inline SVG.

Colours are CSS classes, so that one drawing serves the light and the dark theme. Each chart
carries the values under the pointer as ready text in `data-readout`; the page's script only looks
them up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 14.0, 10.0, 24.0
"""Margins in units of the view box."""

Format = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve. `css` is its colour class."""

    name: str
    css: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    """None leaves a gap."""
    faint: bool = False
    """Drawn thin and pale, and left out of legend and readout: the raw values behind a smoothed curve."""


@dataclass(frozen=True, kw_only=True)
class Whiskers:
    """Points with intervals."""

    name: str
    css: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Size:
    width: float
    height: float


NORMAL = Size(width=560.0, height=220.0)
NARROW = Size(width=370.0, height=200.0)
WIDE = Size(width=1140.0, height=300.0)


@dataclass(frozen=True)
class _Scale:
    """Maps data to the view box."""

    size: Size
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(_LEFT + share * (self.size.width - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(self.size.height - _BOTTOM - share * (self.size.height - _TOP - _BOTTOM), 1)


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round values in steps of 1, 2 or 5 times a power of ten that cover [low, high]."""
    span = high - low if high > low else abs(high) or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1.0, 2.0, 5.0, 10.0) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(max(high, low + span) / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    y_format: Format,
    tick_format: Format | None = None,
    whiskers: Sequence[Whiskers] = (),
    size: Size = NORMAL,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """Curves over learner steps, with points and intervals above them.

    `y_format` writes values in the readout, and at the axis too unless `tick_format` does.
    """
    xs = [x for s in series for x in s.xs] + [x for w in whiskers for x in w.xs]
    values = [y for s in series for y in s.ys if y is not None]
    values += [y for w in whiskers for y in (*w.lows, *w.highs)]
    y_ticks = ticks(*(y_range or (min([0.0, *values]), max(values, default=1.0))))
    scale = _Scale(size, *_x_range(xs), y_ticks[0], y_ticks[-1])
    body = [_axes(scale, y_ticks, tick_format or y_format)]
    body += [_curve(scale, s) for s in sorted(series, key=lambda s: not s.faint)]
    body += [_whisker(scale, w) for w in whiskers]
    shown = [s for s in series if not s.faint]
    rows = [(s.name, s.css, dict(zip(s.xs, s.ys, strict=True))) for s in shown]
    return _wrap(body, size, label, _readout(scale, rows, whiskers, y_format))


def stacked_bars(
    series: Sequence[Series],
    *,
    label: str,
    y_format: Format,
    tick_format: Format | None = None,
    size: Size = NORMAL,
    y_high: float | None = None,
) -> Markup:
    """Bars over learner steps, the first series at the bottom. All series share their xs.

    `y_format` writes values in the readout, and at the axis too unless `tick_format` does. The axis ends
    at `y_high`, or where the highest bar does.
    """
    xs = list(series[0].xs)
    totals = [math.fsum(s.ys[i] or 0.0 for s in series) for i in range(len(xs))]
    y_ticks = ticks(0.0, max(totals, default=1.0) if y_high is None else y_high)
    gap = (xs[-1] - xs[0]) / (len(xs) - 1) if len(xs) > 1 else 1.0
    scale = _Scale(size, xs[0] - gap / 2, xs[-1] + gap / 2, 0.0, y_ticks[-1])
    width = scale.x(xs[0] + gap) - scale.x(xs[0])
    body = [_axes(scale, y_ticks, tick_format or y_format)]
    bottoms = [0.0] * len(xs)
    for s in series:
        # One path a series: a rectangle element for each bar would triple the size of the page.
        path = []
        for i, (x, y) in enumerate(zip(xs, s.ys, strict=True)):
            top = bottoms[i] + (y or 0.0)
            left = scale.x(x) - width * 0.44
            path.append(
                f"M{left:.1f} {scale.y(bottoms[i])}V{scale.y(top)}h{width * 0.88:.1f}V{scale.y(bottoms[i])}z"
            )
            bottoms[i] = top
        body.append(Markup('<path class="area {}" d="{}"/>').format(s.css, "".join(path)))
    rows = [(s.name, s.css, dict(zip(s.xs, s.ys, strict=True))) for s in series]
    return _wrap(body, size, label, _readout(scale, rows, (), y_format))


def _x_range(xs: Sequence[float]) -> tuple[float, float]:
    low, high = min(xs, default=0.0), max(xs, default=1.0)
    if low == high:
        return low - 1.0, high + 1.0
    # A little room, so that a point on the border keeps its whiskers.
    return low - 0.01 * (high - low), high + 0.01 * (high - low)


def _axes(scale: _Scale, y_ticks: Sequence[float], tick_format: Format) -> Markup:
    left, right = _LEFT, scale.size.width - _RIGHT
    parts = []
    for value in y_ticks:
        y = scale.y(value)
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(left, y, right))
        parts.append(
            Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(
                left - 6, y + 3.5, tick_format(value)
            )
        )
    for value in ticks(scale.x_low, scale.x_high, about=6):
        if scale.x_low <= value <= scale.x_high and value == round(value) and value >= 0:
            at = (scale.x(value), scale.size.height - 7)
            parts.append(Markup('<text class="tick mid" x="{}" y="{}">{}</text>').format(*at, f"{value:.0f}"))
    return Markup("").join(parts)


def _curve(scale: _Scale, series: Series) -> Markup:
    path, pen_down, dots = [], False, []
    pairs = list(zip(series.xs, series.ys, strict=True))
    for i, (x, y) in enumerate(pairs):
        if y is None:
            pen_down = False
            continue
        path.append(f"{'L' if pen_down else 'M'}{scale.x(x)} {scale.y(y)}")
        ends_here = i + 1 == len(pairs) or pairs[i + 1][1] is None
        if not pen_down and ends_here:
            dots.append(
                Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(
                    series.css, scale.x(x), scale.y(y)
                )
            )
        pen_down = True
    kind = "line faint" if series.faint else "line"
    curve = Markup('<path class="{} {}" d="{}"/>').format(kind, series.css, "".join(path))
    return curve + Markup("").join(dots)


def _whisker(scale: _Scale, w: Whiskers) -> Markup:
    path: list[str] = []
    joined: list[str] = []
    dots: list[Markup] = []
    for x, y, low, high in zip(w.xs, w.ys, w.lows, w.highs, strict=True):
        px = scale.x(x)
        path.append(
            f"M{px} {scale.y(low)}V{scale.y(high)}M{px - 4} {scale.y(low)}h8M{px - 4} {scale.y(high)}h8"
        )
        joined.append(f"{'L' if joined else 'M'}{px} {scale.y(y)}")
        dots.append(Markup('<circle class="dot {}" cx="{}" cy="{}" r="4"/>').format(w.css, px, scale.y(y)))
    bars = Markup('<path class="whisker {}" d="{}"/>').format(w.css, "".join(path))
    dashed = Markup('<path class="line dashed {}" d="{}"/>').format(w.css, "".join(joined))
    return dashed + bars + Markup("").join(dots)


def _readout(
    scale: _Scale,
    rows: Sequence[tuple[str, str, dict[float, float | None]]],
    whiskers: Sequence[Whiskers],
    y_format: Format,
) -> str:
    """Text at each x, as JSON: [[pixel, title, [[css, name, value], ...]], ...]."""
    points: dict[float, list[list[str]]] = {}
    for name, css, values in rows:
        for x, y in values.items():
            if y is not None:
                points.setdefault(x, []).append([css, name, y_format(y)])
    for w in whiskers:
        for x, y, low, high in zip(w.xs, w.ys, w.lows, w.highs, strict=True):
            text = f"{y_format(y)} ({y_format(low)} to {y_format(high)})"
            points.setdefault(x, []).append([w.css, w.name, text])
    entries = [[scale.x(x), f"step {x:.0f}", points[x]] for x in sorted(points)]
    return json.dumps(entries, separators=(",", ":"))


def _wrap(body: Sequence[Markup], size: Size, label: str, readout: str) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" data-readout="{}">{}'
        '<path class="cursor" d="M0 {}V{}" visibility="hidden"/></svg>'
    ).format(
        f"{size.width:.0f}", f"{size.height:.0f}", label, escape(readout), Markup("").join(body),
        _TOP, size.height - _BOTTOM,
    )  # fmt: skip
