"""Charts with titles, and how values become curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from trd_ray.evaluation import EvalReport, Interval
from trd_ray.metrics import StepMetrics
from trd_ray.report.svg import NARROW, NORMAL, WIDE, Format, Series, Size, Whiskers, line_chart, stacked_bars

MAX_POINTS = 240
"""Points of a curve; more steps are averaged in groups."""
MAX_BARS = 80
_WINDOWS = 25
"""A smoothed curve is a moving mean over this fraction of the run."""

Value = Callable[[StepMetrics], float | None]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart with its title, legend and a sentence on how to read it."""

    title: str
    note: str
    draw: Callable[[Size], Markup]
    legend: tuple[tuple[str, str], ...] = ()
    """(colour class, name)."""
    width: str = "half"
    """Of the page: `full`, `half` or `third`."""

    @property
    def svg(self) -> Markup:
        return self.draw(_SIZES[self.width])


_SIZES = {"full": WIDE, "half": NORMAL, "third": NARROW}
_PER_ROW = {"full": 1, "half": 2, "third": 3}


def fit(panels: Sequence[Panel]) -> list[Panel]:
    """The panels, those of a row that would not be full made wider."""
    fitted: list[Panel] = []
    for width, group_of_width in itertools.groupby(panels, key=lambda panel: panel.width):
        row = list(group_of_width)
        left_over = len(row) % _PER_ROW[width]
        whole, last = row[: len(row) - left_over], row[len(row) - left_over :]
        wider = {1: "full", 2: "half"}.get(left_over, width)
        fitted += [*whole, *(replace(panel, width=wider) for panel in last)]
    return fitted


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def whole_percent(value: float) -> str:
    return f"{100 * value:g}%"


def number(value: float) -> str:
    """Three significant digits, plain where that is short."""
    # From 999.5 on, three digits would be rounded up to 1e+03.
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def group(steps: Sequence[StepMetrics], value: Value, *, most: int) -> tuple[list[float], list[float | None]]:
    """Means of consecutive steps in at most `most` groups; None where no step has a finite value."""
    size = max(1, math.ceil(len(steps) / most))
    xs: list[float] = []
    ys: list[float | None] = []
    for start in range(0, len(steps), size):
        part = steps[start : start + size]
        finite = [y for step in part if (y := value(step)) is not None and math.isfinite(y)]
        xs.append(float(part[-1].learner_step))
        ys.append(math.fsum(finite) / len(finite) if finite else None)
    return xs, ys


def smooth(ys: Sequence[float | None]) -> list[float | None]:
    """Centred moving mean; gaps stay gaps."""
    half = len(ys) // _WINDOWS // 2
    means: list[float | None] = []
    for i, y in enumerate(ys):
        near = [v for v in ys[max(0, i - half) : i + half + 1] if v is not None]
        means.append(None if y is None else math.fsum(near) / len(near))
    return means


def smoothed(
    steps: Sequence[StepMetrics], name: str, css: str, value: Value, *, pale: bool = True
) -> list[Series]:
    """The smoothed curve, above the raw one if `pale`; nothing if the value never exists."""
    xs, ys = group(steps, value, most=MAX_POINTS)
    if all(y is None for y in ys):
        return []
    curve = Series(name=name, css=css, xs=xs, ys=smooth(ys))
    return [Series(name=name, css=css, xs=xs, ys=ys, faint=True), curve] if pale else [curve]


def legend(series: Sequence[Series], whiskers: Sequence[Whiskers] = ()) -> tuple[tuple[str, str], ...]:
    curves = tuple((s.css, s.name) for s in series if not s.faint)
    return curves + tuple((w.css, w.name) for w in whiskers)


def line_panel(
    title: str,
    note: str,
    series: Sequence[Series],
    *,
    whiskers: Sequence[Whiskers] = (),
    in_percent: bool = False,
    y_range: tuple[float, float] | None = None,
    y_format: Format | None = None,
    width: str = "half",
) -> Panel:
    """Curves and points over learner steps."""
    entries = legend(series, whiskers)
    return Panel(
        title=title,
        note=note,
        draw=lambda size: line_chart(
            series, whiskers=whiskers, label=f"{title} over learner steps",
            y_format=y_format or (percent if in_percent else number),
            tick_format=whole_percent if in_percent else None, size=size, y_range=y_range,
        ),
        legend=entries if len(entries) > 1 or whiskers else (),
        width=width,
    )  # fmt: skip


def bar_panel(
    title: str,
    note: str,
    series: Sequence[Series],
    *,
    y_format: Format,
    tick_format: Format | None = None,
    y_high: float | None = None,
    width: str = "half",
) -> Panel:
    """Stacked bars over learner steps; series without any value are left out."""
    used = [s for s in series if any(s.ys)] or list(series)
    return Panel(
        title=title,
        note=note,
        draw=lambda size: stacked_bars(
            used, label=f"{title} over learner steps", y_format=y_format, tick_format=tick_format,
            size=size, y_high=y_high,
        ),
        legend=legend(used),
        width=width,
    )  # fmt: skip


def eval_whiskers(
    name: str,
    css: str,
    reports: Sequence[EvalReport],
    value: Callable[[EvalReport], float],
    interval: Callable[[EvalReport], Interval],
) -> Whiskers:
    """Points with their 95% intervals."""
    return Whiskers(
        name=name,
        css=css,
        xs=[float(r.learner_step) for r in reports],
        ys=[value(r) for r in reports],
        lows=[interval(r)[0] for r in reports],
        highs=[interval(r)[1] for r in reports],
    )


def by_dataset(evals: Sequence[EvalReport]) -> dict[str, list[EvalReport]]:
    return {name: [r for r in evals if r.dataset == name] for name in dict.fromkeys(r.dataset for r in evals)}
