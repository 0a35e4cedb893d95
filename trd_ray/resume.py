"""Whether a configuration may continue a run that began under another one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.errors import ConfigError, describe

log = logging.getLogger(__name__)

# What may change: a run's length, what it records, its patience, where it is placed, what it needs of memory
# and time for the same numbers, and what the messages of a failed run tell people to change. Each change is
# logged.
_MAY_CHANGE = (
    "run.dir",
    "run.num_steps",
    "run.eval_every",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.trackers",
    "run.trace_steps",
    "tracking.",
    "learner.optimizer.learning_rate",
    "learner.micro_batch_tokens",
    "learner.kl_chunk_size",
    "learner.activation_checkpointing",
    "learner.threads",
    "teacher.sampling.max_tokens",
    "teacher.engine.",
    "generator.engine.",
    "method.refine_gate.",
    "pipeline.max_rejected_share",
    "pipeline.max_in_flight",
    "pipeline.over_stale",
    "pipeline.log_targets",
    "weight_sync.",
    "faults.",
    "timeouts.",
    "ray.",
    "generator.resources.",
    "generator.num_actors",
    "teacher.resources.",
    "teacher.num_actors",
    "learner.resources.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One option that has another value."""

    key: str
    before: object
    after: object

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.key}: {_words(self.before)} then, {_words(self.after)} now"


def _words(value: object) -> str:
    return repr(value.value if isinstance(value, StrEnum) else value)


def check_same_run(saved: Path, config: TrdConfig) -> None:
    """Compare with the `config.yaml` of the run folder.

    Raises `ConfigError` naming each option that differs and must not.
    """
    differing = differences(load_config(saved), config)
    for change in differing:
        log.warning("resumed with another %s: %r then, %r now", change.key, change.before, change.after)
    if any(change.key == "run.num_steps" for change in differing):
        log.warning("warm-up and cosine follow run.num_steps: the learning rate goes on along the new curve")
    changed = [change.words for change in differing if not _may_change(change)]
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


def _may_change(change: Difference) -> bool:
    if change.key == "pipeline.max_staleness":
        # What waits in the checkpoint may be as old as it was before.
        return int(str(change.after)) > int(str(change.before))
    return change.key.startswith(_MAY_CHANGE)


def differences(before: TrdConfig, after: TrdConfig) -> tuple[Difference, ...]:
    """The options that differ, in the order of config.py."""
    old = dict(_leaves(before, prefix=""))
    return tuple(
        Difference(key=key, before=old[key], after=value)
        for key, value in _leaves(after, prefix="")
        if old[key] != value
    )


def _leaves(value: object, *, prefix: str) -> Iterator[tuple[str, object]]:
    if not dataclasses.is_dataclass(value):
        yield prefix.removesuffix("."), value
        return
    for item in dataclasses.fields(value):
        yield from _leaves(getattr(value, item.name), prefix=f"{prefix}{item.name}.")
