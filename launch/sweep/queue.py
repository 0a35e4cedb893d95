"""Which trial Ray Tune starts next: the pending ones of the sweep's state, then what Optuna proposes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from launch.sweep.trial import NAME, VALUE
from trd_ray.config import TrdConfig
from trd_ray.errors import ConfigError
from trd_ray.sweep.axes import Axis, AxisKind, Point
from trd_ray.sweep.leaderboard import read_leaderboard
from trd_ray.sweep.spec import Sweep
from trd_ray.sweep.state import SweepFolder, SweepState, TrialRecord, TrialStatus, write_trial_config
from trd_ray.sweep.trials import Trial, TrialConfigs, axis_names, make_trial

log = logging.getLogger(__name__)
# It would write a line for each trial into the sweep's own.
optuna.logging.disable_default_handler()

Suggestion = dict[str, float | int]
"""By axis: the value of a range, else the number of a point."""


class TrialQueue(Searcher):
    """Names trials, one at a time. Everything that it knows is in the state of the sweep."""

    def __init__(self, state: SweepState, proposals: Proposals | None) -> None:
        super().__init__(metric=VALUE, mode="max")
        self._pending = [r.name for r in state.records if r.status is TrialStatus.PENDING]
        self._proposals = proposals
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:
        name = self._pending.pop(0) if self._pending else None
        if name is None and self._proposals is not None:
            name = self._proposals.next(trial_id)
        if name is None:
            return Searcher.FINISHED
        self._names[trial_id] = name
        return {NAME: name}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, object] | None = None, error: bool = False
    ) -> None:
        if self._proposals is not None:
            self._proposals.completed(trial_id, self._names[trial_id], result, error=error)

    def __getstate__(self) -> dict[str, object]:
        """Tune writes a copy of its set-up, which nothing reads: the past is in the state of the sweep."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Tune wants a file."""
        Path(checkpoint_path).write_text("see sweep.json\n", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """A sweep is resumed from its own state."""


class Proposals:
    """Trials that Optuna's TPE proposes, at most `search.num_samples` with those that there are already.

    Those must fit the sweep file: see `require_same_search`.
    """

    def __init__(
        self,
        sweep: Sweep,
        state: SweepState,
        folder: SweepFolder,
        *,
        on_new: Callable[[TrialRecord, TrdConfig], None],
    ) -> None:
        self._sweep = sweep
        self._state = state
        self._folder = folder
        self._on_new = on_new
        self._configs = TrialConfigs(sweep)
        self._names = axis_names(sweep.axes)
        self._optuna = OptunaSearch(
            space={axis.id: _distribution(axis) for axis in sweep.axes},
            metric=VALUE,
            mode=sweep.options.metric.mode.value,
            seed=sweep.options.search.seed + sum(record.attempts > 0 for record in state.records),
        )
        self._asked: set[str] = set()
        self._learn_from_the_past()

    def next(self, trial_id: str) -> str | None:
        """The name of a new trial, whose configuration is written; None if there are enough."""
        while len(self._state.records) < self._sweep.options.search.num_samples:
            key = f"{trial_id}-{len(self._state.records)}"
            suggestion = self._optuna.suggest(key)
            assert isinstance(suggestion, dict)  # it has a space, and is never finished
            trial = self._unique(settings_of(self._sweep.axes, suggestion))
            try:
                config = self._configs.config(trial)
            except ConfigError as error:
                # Each value is all right by itself; not every combination need be.
                log.warning("%s", error)
                failed = replace(TrialRecord.of(trial), status=TrialStatus.FAILED, message=str(error))
                self._state.put(failed)
                self._optuna.on_trial_complete(key, error=True)
                continue
            self._asked.add(trial.name)
            self._keys[trial.name] = key
            write_trial_config(self._folder, trial.name, config)
            self._on_new(TrialRecord.of(trial), config)
            return trial.name
        return None

    def completed(self, trial_id: str, name: str, result: dict[str, object] | None, *, error: bool) -> None:
        """What Optuna learns from; a trial that is run again after a failure was told as evaluated."""
        if name in self._asked:
            self._optuna.on_trial_complete(self._keys[name], result=result, error=error)

    def _unique(self, settings: Point) -> Trial:
        seed = self._sweep.seeds[0] if self._sweep.seeds else None
        trial = make_trial(settings, seed, names=self._names)
        number = 1
        while trial.name in self._state:
            number += 1
            trial = replace(make_trial(settings, seed, names=self._names), name=f"{trial.variant}__{number}")
        return trial

    def _learn_from_the_past(self) -> None:
        self._keys: dict[str, str] = {}
        for line in read_leaderboard(self._folder, self._state, self._sweep.options.metric).lines:
            value = line.result.value
            if line.record.status.is_final and value is not None:
                point = suggestion_of(self._sweep.axes, line.record.settings)
                self._optuna.add_evaluated_point(point, value)


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.kind.is_range:
        return FloatDistribution(axis.low, axis.high, log=axis.kind is AxisKind.LOGUNIFORM)
    return CategoricalDistribution(range(len(axis.points)))


def settings_of(axes: tuple[Axis, ...], suggestion: Suggestion) -> Point:
    """The values that a suggestion stands for."""
    settings: list[tuple[str, str | int | float | bool]] = []
    for axis in axes:
        chosen = suggestion[axis.id]
        settings += axis.at(float(chosen)) if axis.kind.is_range else axis.points[int(chosen)]
    return tuple(settings)


def suggestion_of(axes: tuple[Axis, ...], settings: Point) -> Suggestion:
    """The inverse of `settings_of`."""
    values = dict(settings)
    suggestion: Suggestion = {}
    for axis in axes:
        if axis.kind.is_range:
            suggestion[axis.id] = float(values[axis.id])
        else:
            suggestion[axis.id] = axis.points.index(tuple((key, values[key]) for key in axis.keys))
    return suggestion
