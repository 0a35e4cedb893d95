"""From a sweep file to its trials: names, settings, and a checked configuration for each."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_layered
from trd_ray.config_sources import Leaf
from trd_ray.errors import ConfigError, describe
from trd_ray.sweep.axes import CONFIG, METHOD, Axis, Point, Value
from trd_ray.sweep.options import SearchKind, StopKind
from trd_ray.sweep.spec import Sweep

_MOST_NAME = 100
_SEED = "run.seed"
_Loader = Callable[[Sequence[Leaf]], TrdConfig]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep, before its configuration is made."""

    name: str
    """Of its folder."""
    variant: str
    """What it has in common with those that differ by seed alone: a row of the leaderboard."""
    settings: Point
    """Its value on every axis."""
    seed: int | None
    """None: that of the configuration."""


def fixed_trials(sweep: Sweep) -> tuple[Trial, ...]:
    """Every combination of the grid axes, for each draw of the random ones, for each seed; seeds innermost.

    All combinations and seeds share the draws, so that they can be compared.
    """
    names = axis_names(sweep.axes)
    trials = []
    numbers = range(sweep.options.search.num_samples if sweep.random_axes else 1)
    for number in numbers:
        for point in itertools.product(*(_points(axis, sweep, number) for axis in sweep.axes)):
            settings = tuple(setting for part in point for setting in part)
            trials += [make_trial(settings, seed, names=names) for seed in sweep.seeds or (None,)]
    # A draw of a `choice` may come twice; the same trial twice tells nothing.
    return tuple(dict.fromkeys(trials))


def _points(axis: Axis, sweep: Sweep, number: int) -> tuple[Point, ...]:
    return (axis.draw(sweep.options.search.seed, number),) if axis.kind.is_random else axis.points


def make_trial(settings: Point, seed: int | None, *, names: dict[str, str]) -> Trial:
    """Name a trial by its settings. `names` come from `axis_names`."""
    parts = [_part(names[key], key, value) for key, value in settings]
    # Two draws may agree in the digits that are shown.
    if any(isinstance(value, float) and _short(value) != repr(value) for _, value in settings):
        parts.append(hashlib.sha256(repr(settings).encode()).hexdigest()[:4])
    variant = "__".join(parts) or "base"
    if len(variant) > _MOST_NAME:
        digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
        variant = f"{variant[:_MOST_NAME]}__{digest}"
    name = variant if seed is None else f"{variant}__seed={seed}"
    return Trial(name=name, variant=variant, settings=settings, seed=seed)


def axis_names(axes: Sequence[Axis]) -> dict[str, str]:
    """How each key is called in a name: by its last part where that is enough."""
    keys = [key for axis in axes for key in axis.keys]
    short = Counter(key.rsplit(".", 1)[-1] for key in keys)
    return {key: last if short[last := key.rsplit(".", 1)[-1]] == 1 else key for key in keys}


def _part(name: str, key: str, value: Value) -> str:
    if key in (METHOD, CONFIG):
        return _safe(Path(str(value)).name.removesuffix(".yaml"))
    return f"{name}={_safe(_short(value))}"


def _short(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _safe(text: str) -> str:
    """For a file name on any system."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-") or "empty"


class TrialConfigs:
    """Makes and checks the configuration of each trial."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._layered: Callable[[tuple[Path, ...]], _Loader] = cache(load_layered)

    def config(self, trial: Trial) -> TrdConfig:
        """Raises `ConfigError` naming the trial and the key."""
        try:
            load, leaves = self._layered(self._sweep.files(trial.settings)), tuple(self._leaves(trial))
            config = load(leaves)
            if config.pipeline.log_targets and config.pipeline.log_url:
                config = load((*leaves, self._log_of(trial, config.pipeline.log_url)))
            _check_metric(self._sweep, config)
        except ConfigError as error:
            raise ConfigError(f"trial {trial.name}: {error}") from error
        return config

    def _log_of(self, trial: Trial, url: str) -> Leaf:
        """A place of its own below the one that the options name for all."""
        return _leaf("pipeline.log_url", f"{url.rstrip('/')}/{trial.name}", self._place(trial))

    def _place(self, trial: Trial) -> str:
        """For messages."""
        return f"{self._sweep.path}, trial {trial.name}"

    def _leaves(self, trial: Trial) -> Iterator[Leaf]:
        yield from self._sweep.fixed
        place = self._place(trial)
        for key, value in trial.settings:
            if key not in (METHOD, CONFIG):
                yield _leaf(key, value, place)
        if trial.seed is not None:
            yield _leaf(_SEED, trial.seed, place)
        yield _leaf("run.dir", str(self._sweep.folder / "trials" / trial.name), place)
        yield _leaf("ray.address", self._sweep.options.ray.address, place)


def checked_trials(sweep: Sweep) -> dict[str, tuple[Trial, TrdConfig]]:
    """Every trial of the file with its configuration, by name; for Optuna each value of each axis.

    Raises `ConfigError` for the first that is wrong, before anything is started.
    """
    configs = TrialConfigs(sweep)
    trials = probe_trials(sweep) if sweep.options.search.kind is SearchKind.OPTUNA else fixed_trials(sweep)
    checked = {}
    for trial in trials:
        if trial.name in checked:
            raise ConfigError(
                describe(
                    "two trials would have one name", where=str(sweep.path), got=trial.name,
                    expected="names that differ", remedy="name files differently, or write values shorter",
                )
            )  # fmt: skip
        checked[trial.name] = (trial, configs.config(trial))
    return checked


def probe_trials(sweep: Sweep) -> tuple[Trial, ...]:
    """Each value of each axis (both ends of a range), the other axes at their first value."""
    names = axis_names(sweep.axes)
    first = [axis.probes()[0] for axis in sweep.axes]
    points = [
        (*first[:i], probe, *first[i + 1 :]) for i, axis in enumerate(sweep.axes) for probe in axis.probes()
    ]
    seed = sweep.seeds[0] if sweep.seeds else None
    trials = [make_trial(tuple(s for part in point for s in part), seed, names=names) for point in points]
    return tuple(dict.fromkeys(trials))


def _leaf(key: str, value: Value, place: str) -> Leaf:
    node = yaml.compose(yaml.safe_dump(value), Loader=yaml.SafeLoader)
    assert node is not None  # a plain value
    return Leaf(key=key, node=node, place=place)


def _check_metric(sweep: Sweep, config: TrdConfig) -> None:
    """What the leaderboard and ASHA compare by must be there."""
    metric, stop = sweep.options.metric, sweep.options.stop_early
    if not metric.of_eval:
        return
    if not config.data.eval:
        raise ConfigError(
            describe(
                "trials are compared by an evaluation, and there is none", where="data.eval", got='""',
                expected="held-out problems", remedy="set data.eval, or metric.name=rollout_accuracy",
            )
        )  # fmt: skip
    if stop.kind is StopKind.ASHA and not 0 < config.run.eval_every < config.run.num_steps:
        raise ConfigError(
            describe(
                "ASHA needs evaluations on the way", where="run.eval_every", got=config.run.eval_every,
                expected=f"1 to {config.run.num_steps - 1} with run.num_steps={config.run.num_steps}",
                remedy="set run.eval_every, or metric.name=rollout_accuracy",
            )
        )  # fmt: skip
