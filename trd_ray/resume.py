"""Whether a configuration may continue a run that began under another one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.errors import ConfigError, describe

log = logging.getLogger(__name__)

# What may change: a run's length, what it records, its patience, where it is placed, and what the
# messages of a failed run tell people to change. Each change is logged.
_MAY_CHANGE = (
    "run.dir",
    "run.num_steps",
    "run.eval_every",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.tensorboard",
    "run.trace_steps",
    "learner.optimizer.learning_rate",
    "teacher.sampling.max_tokens",
    "teacher.engine.",
    "generator.engine.",
    "method.refine_gate.",
    "pipeline.max_rejected_share",
    "pipeline.max_in_flight",
    "pipeline.over_stale",
    "pipeline.log_targets",
    "faults.",
    "timeouts.",
    "ray.",
    "generator.resources.",
    "generator.num_actors",
    "teacher.resources.",
    "teacher.num_actors",
    "learner.resources.",
)


def check_same_run(saved: Path, config: TrdConfig) -> None:
    """Compare with the `config.yaml` of the run folder.

    Raises `ConfigError` naming each option that differs and must not.
    """
    before = dict(_leaves(load_config(saved), prefix=""))
    after = dict(_leaves(config, prefix=""))
    differing = [key for key in after if before[key] != after[key]]
    for key in differing:
        log.warning("resumed with another %s: %r then, %r now", key, before[key], after[key])
    if "run.num_steps" in differing:
        log.warning("warm-up and cosine follow run.num_steps: the learning rate goes on along the new curve")
    changed = [
        f"{key}: {before[key]!r} then, {after[key]!r} now"
        for key in differing
        if not key.startswith(_MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(
            describe(
                "the configuration differs from that of the run to be resumed",
                where=str(saved),
                got="; ".join(changed),
                expected="the same options",
                remedy="give the options that the run was started with, or start a new run",
            )
        )


def _leaves(value: object, *, prefix: str) -> Iterator[tuple[str, object]]:
    if not dataclasses.is_dataclass(value):
        yield prefix.removesuffix("."), value
        return
    for item in dataclasses.fields(value):
        yield from _leaves(getattr(value, item.name), prefix=f"{prefix}{item.name}.")
