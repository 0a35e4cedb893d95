"""`--local`: a run's configuration made small and quick to fail, to look at real actors on one machine.

The same roles, engines and losses, one actor each, few problems, no second attempt at anything. What the
user has set on the command line stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TypeVar

from trd_ray.choices import Device
from trd_ray.config import TrdConfig

T = TypeVar("T")

_STEPS = 2
_PROMPTS = 4
_ROLLOUTS = 2
_EVAL_PROBLEMS = 4
_EVAL_SAMPLES = 2
_CPUS = 0.25
"""Of an actor: a share, so that three of them fit on one core."""

# Options that contradict each other in part: where the user has set one, none of the others is changed.
_TOGETHER = (
    frozenset({"pipeline.max_staleness", "pipeline.stage_barrier", "pipeline.max_in_flight"}),
    frozenset({"generator.engine.tensor_parallel_size", "generator.resources.gpus"}),
    frozenset({"teacher.engine.tensor_parallel_size", "teacher.resources.gpus"}),
)


def local_mode(config: TrdConfig, *, keep: Collection[str] = ()) -> TrdConfig:
    """`config` for one machine. Equal to its argument where that is small and strict already.

    Args:
        keep: keys that are not changed.

    Raises `ConfigError` if what is kept contradicts the rest.
    """
    kept = set(keep)
    for group in _TOGETHER:
        if group & kept:
            kept |= group
    wanted = {key: value for key, value in _wanted(config).items() if key not in kept}
    return _with(config, wanted, prefix="")


def _wanted(config: TrdConfig) -> dict[str, object]:
    return _fewest_processes(config) | _small(config) | _strict()


def _fewest_processes(config: TrdConfig) -> dict[str, object]:
    wanted: dict[str, object] = {
        "ray.address": "local",
        "ray.dashboard": False,
        "ray.actor_logs": True,
        "generator.num_actors": 1,
        "teacher.num_actors": 1,
        "learner.num_ranks": 1,
        "learner.threads": 1,
        "learner.resources.cpus": min(config.learner.resources.cpus, _CPUS),
    }
    for role, engine, resources in (
        ("generator", config.generator.engine, config.generator.resources),
        ("teacher", config.teacher.engine, config.teacher.resources),
    ):
        wanted |= {
            f"{role}.engine.threads": 1,
            f"{role}.engine.enforce_eager": True,
            f"{role}.engine.tensor_parallel_size": 1,
            f"{role}.resources.gpus": 1.0 if engine.device is Device.CUDA else 0.0,
            f"{role}.resources.cpus": min(resources.cpus, _CPUS),
        }
    return wanted


def _small(config: TrdConfig) -> dict[str, object]:
    return {
        "run.num_steps": min(config.run.num_steps, _STEPS),
        "pipeline.prompts_per_step": min(config.pipeline.prompts_per_step, _PROMPTS),
        "pipeline.rollouts_per_prompt": min(config.pipeline.rollouts_per_prompt, _ROLLOUTS),
        "pipeline.max_staleness": 0,
        "pipeline.stage_barrier": True,
        "pipeline.max_in_flight": 0,
        "data.eval_problems": min(config.data.eval_problems, _EVAL_PROBLEMS),
        "eval.num_samples": min(config.eval.num_samples, _EVAL_SAMPLES),
    }


def _strict() -> dict[str, object]:
    return {
        # In so small a step a few rejections say nothing, and are no error.
        "pipeline.max_rejected_share": 1.0,
        "weight_sync.verify_every": 1,
        "faults.max_attempts": 1,
        "faults.max_restarts": 0,
        "faults.max_nonsense": 1,
    }


def _with(block: T, wanted: Mapping[str, object], *, prefix: str) -> T:
    """A block with other values, each block built once, so that its checks see all of them."""
    changes: dict[str, object] = {}
    for item in dataclasses.fields(block):  # type: ignore[arg-type]
        key, value = f"{prefix}{item.name}", getattr(block, item.name)
        if dataclasses.is_dataclass(value):
            changes[item.name] = _with(value, wanted, prefix=f"{key}.")
        elif key in wanted:
            changes[item.name] = wanted[key]
    return dataclasses.replace(block, **changes)  # type: ignore[type-var]
