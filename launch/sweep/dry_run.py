"""`trd-ray sweep --dry-run`: the trials and what they cost. Loads neither torch nor Ray, starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.consoles import show
from trd_ray.config import TrdConfig
from trd_ray.resume import differences
from trd_ray.sweep.cost import measure, total_cost, trial_cost
from trd_ray.sweep.options import SearchKind, StopKind
from trd_ray.sweep.spec import Sweep
from trd_ray.sweep.state import SweepFolder
from trd_ray.sweep.trials import checked_trials
from trd_ray.sweep.words import duration

_MOST_ROWS = 60


def show_sweep(sweep: Sweep, *, like: Path | None) -> None:
    """Check everything that the configurations themselves tell; print the trials.

    Args:
        like: a run by which time and tokens are estimated.

    Raises `ConfigError` naming the trial and the key.
    """
    wanted = checked_trials(sweep)
    by_optuna = sweep.options.search.kind is SearchKind.OPTUNA
    configs = {name: config for name, (_, config) in wanted.items()}
    keys = differing_keys(list(configs.values()))
    what = "values at the ends of the search" if by_optuna else "trials"
    show(f"{len(configs)} {what}; the options in which they differ:")
    for name, config in list(configs.items())[:_MOST_ROWS]:
        settings = " ".join(f"{key}={option(config, key)}" for key in keys)
        show(f"  {name}\n      {settings or 'none'}")
    if len(configs) > _MOST_ROWS:
        show(f"... and {len(configs) - _MOST_ROWS} more")
    _show_cost(sweep, list(configs.values()), by_optuna=by_optuna, like=like)
    show(f"compared by {sweep.options.metric.name} ({sweep.options.metric.mode.value}); in {sweep.folder}")
    if SweepFolder(sweep.folder).state.exists():
        show("the folder holds a sweep already: --resume runs what has not ended")
    show("models and data are checked when the sweep is started")


def _show_cost(sweep: Sweep, configs: Sequence[TrdConfig], *, by_optuna: bool, like: Path | None) -> None:
    total = total_cost(configs)
    if by_optuna:
        num = sweep.options.search.num_samples
        total = sum((trial_cost(configs[0]) for _ in range(num - 1)), trial_cost(configs[0]))
        show(f"Optuna proposes {num} trials")
    if sweep.options.stop_early.kind is not StopKind.NONE:
        show("at most, since trials that are behind are stopped:")
    show(
        f"{total.num_steps:,} steps, {total.num_trajectories:,} trajectories, {total.num_rollouts:,} "
        f"rollouts with evaluations; at most {total.most_tokens:,} tokens, with every "
        "answer as long as it may be"
    )
    if like is not None:
        by = measure(like)
        show(
            f"as in {like}: {total.num_trajectories * by.tokens:,.0f} tokens and "
            f"{duration(total.num_trajectories * by.seconds)} of training, one trial after the other, "
            "without starts and evaluations"
        )


def differing_keys(configs: Sequence[TrdConfig]) -> list[str]:
    """Options that are not the same in all, but for the run folder."""
    keys: dict[str, None] = {}
    for config in configs[1:]:
        keys |= dict.fromkeys(change.key for change in differences(configs[0], config))
    return [key for key in keys if key != "run.dir"]


def option(config: TrdConfig, key: str) -> str:
    """An option as people write it."""
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
