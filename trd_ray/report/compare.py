"""Several runs beside each other: final values and their differences, curves on one chart, and which
options differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trd_ray.activity_records import ActorState
from trd_ray.evaluation import EvalReport, Interval
from trd_ray.metrics import StepMetrics
from trd_ray.report.charts import (
    Panel,
    Value,
    by_dataset,
    eval_whiskers,
    fit,
    line_panel,
    number,
    percent,
    smoothed,
)
from trd_ray.report.data import RunData
from trd_ray.report.findings import apart, duration, num_refined, num_rollouts, share_interval, tenth
from trd_ray.report.svg import Series
from trd_ray.roles import Role

NUM_COLOURS = 8
_NONE = "\u2013"
"""Shown where a run has no value."""

_OF_THE_PLACE = ("run.dir",)
"""Options that differ between any two runs."""


def run_css(index: int) -> str:
    """The colour class of a run."""
    return f"c-run-{index % NUM_COLOURS}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run's value in the table."""

    value: str
    detail: str = ""
    difference: str = ""
    """From the first run's; empty in the first run's own cell, and where one of the two has none."""
    trend: str = ""
    """`up` (better), `down` (worse) or nothing: only where one direction is better, and for evaluations and
    shares of trajectories only if their 95% intervals do not overlap."""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One quantity over all runs."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class _Quantity:
    name: str
    value: Callable[[RunData], float | None]
    show: Callable[[float], str]
    better: int = 0
    """1: more is better, -1: less is, 0: neither."""
    in_points: bool = False
    """Differences are in percentage points."""
    share_of: Callable[[StepMetrics], int] | None = None
    """If it is a share: the number of a step's things that it is a share of."""


def final_values(runs: Sequence[RunData]) -> list[TableRow]:
    """Final evaluations first, with their intervals, then means over the last tenth of each run's steps."""
    rows = []
    datasets = dict.fromkeys(name for run in runs for name in by_dataset(run.evals))
    for dataset in datasets:
        rows += _eval_rows(dataset, [by_dataset(run.evals).get(dataset, []) for run in runs])
    for quantity in _QUANTITIES:
        values = [quantity.value(run) for run in runs]
        if any(value is not None for value in values):
            rows.append(TableRow(name=quantity.name, cells=_cells(runs, values, quantity)))
    return rows


def _cells(runs: Sequence[RunData], values: Sequence[float | None], quantity: _Quantity) -> tuple[Cell, ...]:
    first = values[0]
    cells = []
    for index, value in enumerate(values):
        if value is None:
            cells.append(Cell(value=_NONE))
            continue
        compared = index > 0 and first is not None
        change = value - first if compared and first is not None else 0.0
        is_sure = compared
        if compared and first is not None and quantity.share_of is not None:
            is_sure = apart(
                share_interval(runs[0].steps, first, quantity.share_of, last=True),
                share_interval(runs[index].steps, value, quantity.share_of, last=True),
            )
        cells.append(
            Cell(
                value=quantity.show(value),
                difference=_difference(change, quantity) if compared else "",
                trend=_trend(change * quantity.better) if is_sure else "",
            )
        )
    return tuple(cells)


def _plain(value: float) -> str:
    """A number; what is only rounding is 0."""
    return number(value) if abs(value) >= 1e-6 else "0"


def _difference(change: float, quantity: _Quantity) -> str:
    if quantity.in_points:
        return f"{100 * change:+.1f} points"
    sign = "-" if change < 0 else "+"
    return f"{sign}{quantity.show(abs(change))}"


def _trend(better: float) -> str:
    return "up" if better > 0 else "down" if better < 0 else ""


_Value = Callable[[EvalReport], float]
_Interval = Callable[[EvalReport], Interval]

_MEASURES: tuple[tuple[str, Callable[[EvalReport], int], _Value, _Interval], ...] = (
    ("avg@k", lambda r: r.num_samples, lambda r: r.avg_at_k, lambda r: r.avg_ci95),
    ("pass@k", lambda r: r.k, lambda r: r.pass_at_k, lambda r: r.pass_ci95),
)
"""(name, its k, value, interval)."""


def _eval_rows(dataset: str, evals: Sequence[Sequence[EvalReport]]) -> list[TableRow]:
    last = [reports[-1] if reports else None for reports in evals]
    rows = []
    for name, of_k, value, interval in _MEASURES:
        names = {name.replace("@k", f"@{of_k(report)}") for report in last if report is not None}
        cells = tuple(
            _eval_cell(report, last[0] if i else None, value, interval) for i, report in enumerate(last)
        )
        rows.append(TableRow(name=f"{' / '.join(sorted(names))} on {dataset}", cells=cells))
    return rows


def _eval_cell(
    report: EvalReport | None, first: EvalReport | None, value: _Value, interval: _Interval
) -> Cell:
    """`first` is what it is compared with; None in the first run."""
    if report is None:
        return Cell(value=_NONE)
    low, high = interval(report)
    cell = Cell(
        value=percent(value(report)),
        detail=f"{percent(low)} to {percent(high)}, step {report.learner_step:,}",
    )
    if first is None:
        return cell
    change = value(report) - value(first)
    is_sure = apart(interval(first), (low, high))
    return replace(
        cell,
        difference=f"{100 * change:+.1f} points" + ("" if is_sure else ", intervals overlap"),
        trend=_trend(change) if is_sure else "",
    )


def _last_tenth(value: Value) -> Callable[[RunData], float | None]:
    return lambda run: tenth(run.steps, value, last=True)


def _total(value: Callable[[StepMetrics], float]) -> Callable[[RunData], float | None]:
    return lambda run: math.fsum(value(step) for step in run.steps) if run.steps else None


def _share(role: Role) -> Value:
    """Of a step that the role's actors are not busy."""

    def idle(m: StepMetrics) -> float | None:
        busy = None if m.runtime is None else m.runtime.share(role, ActorState.BUSY)
        return None if busy is None else 1.0 - busy

    return idle


def _num_trajectories(m: StepMetrics) -> int:
    return m.num_trajectories


def _count(value: float) -> str:
    return f"{value:,.0f}"


_QUANTITIES = (
    _Quantity(name="Rollout accuracy", value=_last_tenth(lambda m: m.rollout_accuracy), show=percent,
              better=1, in_points=True, share_of=num_rollouts),
    _Quantity(name="Refined accuracy", value=_last_tenth(lambda m: m.refined_accuracy), show=percent,
              better=1, in_points=True, share_of=num_refined),
    _Quantity(name="Wrong to right, share", show=percent, in_points=True,
              value=_last_tenth(lambda m: None if m.refined_accuracy is None
                                else m.flips_wrong_to_right / m.num_trajectories)),
    _Quantity(name="Right to wrong, share", show=percent, better=-1, in_points=True,
              share_of=_num_trajectories, value=_last_tenth(lambda m: None if m.refined_accuracy is None
                                else m.flips_right_to_wrong / m.num_trajectories)),
    _Quantity(name="Rejected, share", show=percent, better=-1, in_points=True, share_of=_num_trajectories,
              value=_last_tenth(lambda m: m.num_rejected / m.num_trajectories)),
    _Quantity(name="Loss, nats a token", value=_last_tenth(lambda m: m.loss), show=_plain),
    _Quantity(name="Gradient norm", value=_last_tenth(lambda m: m.grad_norm), show=_plain),
    _Quantity(name="Support, nats a token", value=_last_tenth(lambda m: m.support_mean), show=_plain),
    _Quantity(name="Rollout length, tokens", value=_last_tenth(lambda m: m.rollout_length_mean), show=_plain),
    _Quantity(name="Refinement length, tokens", value=_last_tenth(lambda m: m.refined_length_mean),
              show=_plain),
    _Quantity(name="Seconds a step", value=_last_tenth(lambda m: m.step_s), show=_plain, better=-1),
    _Quantity(name="Tokens per second", value=_last_tenth(lambda m: m.tokens_per_s), show=_plain, better=1),
    _Quantity(name="Generators not busy", value=_last_tenth(_share(Role.GENERATOR)), show=percent, better=-1,
              in_points=True),
    _Quantity(name="Teachers not busy", value=_last_tenth(_share(Role.TEACHER)), show=percent, better=-1,
              in_points=True),
    _Quantity(name="Learner not busy", value=_last_tenth(_share(Role.LEARNER)), show=percent, better=-1,
              in_points=True),
    _Quantity(name="Time in steps", value=_total(lambda m: m.step_s), show=duration, better=-1),
    _Quantity(name="Generated tokens", value=_total(lambda m: m.num_generated_tokens), show=_count),
    _Quantity(name="Steps", value=lambda run: float(len(run.steps)), show=_count),
)  # fmt: skip
"""Rows of the table below the evaluations. Means over the last tenth of a run's steps, or sums over all."""


def option_differences(runs: Sequence[RunData]) -> list[tuple[str, tuple[str | None, ...]]]:
    """(key, the value in each run) of the options that are not the same in all; None where a run has no
    such option."""
    keys = sorted({key for run in runs for key in run.options})
    rows = [(key, tuple(run.options.get(key) for run in runs)) for key in keys if key not in _OF_THE_PLACE]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def comparison_panels(runs: Sequence[RunData]) -> list[Panel]:
    """Each quantity of all runs on one chart; quantities that no run has are left out."""
    panels = []
    for dataset in dict.fromkeys(name for run in runs for name in by_dataset(run.evals)):
        panels += _eval_panels(dataset, runs)
    for title, note, value, in_percent in _CURVES:
        series: list[Series] = []
        for index, run in enumerate(runs):
            series += smoothed(run.steps, run.name, run_css(index), value, pale=len(runs) < 4)
        if series:
            top = (0.0, 1.0) if title.endswith("accuracy") or title.endswith("not busy") else None
            panels.append(line_panel(title, note, series, in_percent=in_percent, y_range=top))
    return fit(panels)


def _eval_panels(dataset: str, runs: Sequence[RunData]) -> list[Panel]:
    panels = []
    for what, of_k, value, interval in _MEASURES:
        whiskers = []
        for index, run in enumerate(runs):
            reports = by_dataset(run.evals).get(dataset, [])
            if not reports:
                continue
            k = of_k(reports[-1])
            name = f"{run.name} ({what.replace('@k', f'@{k}')})"
            whiskers.append(eval_whiskers(name, run_css(index), reports, value, interval))
        note = "With the 95% interval over problems."
        panels.append(
            line_panel(
                f"{what} on {dataset}", note, [], whiskers=whiskers, in_percent=True, y_range=(0.0, 1.0)
            )
        )
    return panels


_CURVES: tuple[tuple[str, str, Value, bool], ...] = (
    ("Rollout accuracy", "Share of right rollouts of training problems.", lambda m: m.rollout_accuracy, True),
    ("Refined accuracy", "Share of right refinements.", lambda m: m.refined_accuracy, True),
    ("Loss", "The objective, nats a token. Comparable only between runs of one method.",
     lambda m: m.loss, False),
    ("Gradient norm", "Global L2 norm before clipping.", lambda m: m.grad_norm, False),
    ("Wrong to right", "Share of trajectories that refining repairs.",
     lambda m: None if m.refined_accuracy is None else m.flips_wrong_to_right / m.num_trajectories, True),
    ("Right to wrong", "Share of trajectories that refining breaks.",
     lambda m: None if m.refined_accuracy is None else m.flips_right_to_wrong / m.num_trajectories, True),
    ("Rejected", "Share of trajectories that were not trained on.",
     lambda m: m.num_rejected / m.num_trajectories, True),
    ("Support", "Mean student logprob of what is trained on less that of its rollouts, nats a token.",
     lambda m: m.support_mean, False),
    ("Rollout length", "Mean tokens.", lambda m: m.rollout_length_mean, False),
    ("Refinement length", "Mean tokens.", lambda m: m.refined_length_mean, False),
    ("Seconds a step", "Wall time of the whole step.", lambda m: m.step_s, False),
    ("Throughput", "Generated tokens per second of the whole step.", lambda m: m.tokens_per_s, False),
    ("Generators not busy", "Share of the step: idle, held back, or down.", _share(Role.GENERATOR), True),
    ("Teachers not busy", "Share of the step.", _share(Role.TEACHER), True),
    ("Learner not busy", "Share of the step.", _share(Role.LEARNER), True),
)  # fmt: skip
