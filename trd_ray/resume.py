"""Whether a configuration may continue a run that began under another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.errors import ConfigError, describe

# What may change without the run becoming another one: its length, what it records, its patience,
# and where it is placed.
_MAY_CHANGE = (
    "run.dir",
    "run.num_steps",
    "run.eval_every",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.tensorboard",
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
    changed = [
        f"{key}: {before[key]!r} then, {after[key]!r} now"
        for key in after
        if before[key] != after[key] and not key.startswith(_MAY_CHANGE)
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
