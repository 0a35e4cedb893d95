"""The leaderboard: variants in order, what they reached over seeds, and how they differ from the first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trd_ray.evaluation import Interval
from trd_ray.sweep.options import MetricConfig
from trd_ray.sweep.results import Curve, TrialResult, read_result
from trd_ray.sweep.state import SweepFolder, SweepState, TrialRecord, TrialStatus
from trd_ray.sweep.statistics import PairedDifference, paired_difference, seeds_interval

_NO_SEED = 0


@dataclass(frozen=True, kw_only=True)
class TrialLine:
    """One trial: what became of it and what it reached."""

    record: TrialRecord
    result: TrialResult

    @property
    def counts(self) -> bool:
        """Its value enters the mean of its variant."""
        return self.record.status is TrialStatus.DONE and self.result.value is not None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant."""

    variant: str
    trials: tuple[TrialLine, ...]
    mean: float | None
    """Over trials that are done, each seed weighing alike; None if there is none."""
    interval: Interval | None
    """95%, over seeds; None for fewer than two."""
    difference: PairedDifference | None = None
    """To the first row; None in the first row, and where nothing is done."""

    @property
    def num_done(self) -> int:
        """Seeds with a trial that counts: what the interval is over. Repeats of a seed are one."""
        return len(self.by_seed)

    @property
    def statuses(self) -> Mapping[TrialStatus, int]:
        """How many trials have each status that occurs."""
        return Counter(line.record.status for line in self.trials)

    @property
    def spent_s(self) -> float:
        """Seconds of all its trials."""
        return math.fsum(line.record.spent_s for line in self.trials)

    @property
    def num_tokens(self) -> int:
        return sum(line.result.num_tokens for line in self.trials)

    @property
    def learner_step(self) -> int:
        """The furthest that one of its trials has come."""
        return max(line.result.learner_step for line in self.trials)

    @property
    def newest(self) -> float | None:
        """Mean of what its trials have reached so far, done or not."""
        values = [line.result.value for line in self.trials if line.result.value is not None]
        return math.fsum(values) / len(values) if values else None

    @property
    def by_seed(self) -> dict[int, float]:
        """Values that count; where Optuna repeated a seed, their mean."""
        return _by_seed(self.trials)

    @property
    def curve(self) -> Curve:
        """Mean over the trials that have a value at a step, at the steps that all of those that are done
        have (of any trial if none is done)."""
        curves = [line.result.curve for line in self.trials if line.counts]
        curves = curves or [line.result.curve for line in self.trials]
        shared = [dict(curve) for curve in curves if curve]
        steps = sorted(set.intersection(*(set(values) for values in shared))) if shared else []
        return tuple((s, math.fsum(values[s] for values in shared) / len(shared)) for s in steps)


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Rows in order."""

    name: str
    metric: MetricConfig
    label: str
    """The metric as people call it."""
    rows: tuple[Row, ...] = field(default=())

    @property
    def lines(self) -> tuple[TrialLine, ...]:
        return tuple(line for row in self.rows for line in row.trials)


def read_leaderboard(folder: SweepFolder, state: SweepState, metric: MetricConfig) -> Leaderboard:
    """Read every run folder. Works at any time of a sweep."""
    lines = [
        TrialLine(record=record, result=read_result(folder.run(record.name), metric))
        for record in state.records
    ]
    return leaderboard(folder.path.resolve().name, lines, metric)


def leaderboard(name: str, lines: Sequence[TrialLine], metric: MetricConfig) -> Leaderboard:
    """Variants with a trial that is done come first, by their mean; then those that came furthest."""
    by_variant: dict[str, list[TrialLine]] = {}
    for line in lines:
        by_variant.setdefault(line.record.variant, []).append(line)
    rows = sorted((_row(variant, group) for variant, group in by_variant.items()), key=_Order(metric))
    first = rows[0] if rows and rows[0].mean is not None else None
    labels = [line.result.label for line in lines if line.result.label]
    return Leaderboard(
        name=name,
        metric=metric,
        label=labels[0] if labels else metric.name,
        rows=tuple(_compared(row, first) for row in rows),
    )


def _row(variant: str, lines: Sequence[TrialLine]) -> Row:
    values = list(_by_seed(lines).values())
    return Row(
        variant=variant,
        trials=tuple(lines),
        mean=math.fsum(values) / len(values) if values else None,
        interval=seeds_interval(values),
    )


def _by_seed(lines: Sequence[TrialLine]) -> dict[int, float]:
    # Repeats of a seed are not independent: as values of their own they would narrow the interval.
    groups: dict[int, list[float]] = {}
    for line in lines:
        if line.counts and line.result.value is not None:
            seed = _NO_SEED if line.record.seed is None else line.record.seed
            groups.setdefault(seed, []).append(line.result.value)
    return {seed: math.fsum(values) / len(values) for seed, values in groups.items()}


class _Order:
    """Sort key: done before not, better before worse; not done: further before nearer."""

    def __init__(self, metric: MetricConfig) -> None:
        self._sign = metric.sign

    def __call__(self, row: Row) -> tuple[bool, int, float]:
        if row.mean is not None:
            return (False, 0, -self._sign * row.mean)
        newest = -self._sign * row.newest if row.newest is not None else math.inf
        return (True, -row.learner_step, newest)


def _compared(row: Row, first: Row | None) -> Row:
    if first is None or row is first or row.mean is None:
        return row
    return Row(
        variant=row.variant,
        trials=row.trials,
        mean=row.mean,
        interval=row.interval,
        difference=paired_difference(row.by_seed, first.by_seed),
    )
