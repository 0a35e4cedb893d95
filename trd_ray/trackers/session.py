"""What a tracker is told of a run, and what it must be able to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from trd_ray.run_folder import RunFolder


class RunEnd(StrEnum):
    """How a run, or this process's part of it, ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """By a signal; may be resumed."""
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as one tracker sees it."""

    folder: RunFolder
    project: str
    name: str
    tags: tuple[str, ...]
    offline: bool
    mlflow_uri: str
    """Empty: the library's own choice, or a file in the run folder."""
    config: Mapping[str, object]
    """The whole configuration as plain nested mappings, without secrets."""
    first_step: int
    """The next learner step; above 1 in a run that is resumed."""
    known_id: str | None
    """What the tracker called this run when it was open last; None for a new one."""

    def flat_config(self) -> dict[str, str]:
        """Values as text, by dotted path."""
        return dict(_leaves(self.config, prefix=""))


def _leaves(value: object, *, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, prefix=f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


class Tracker(Protocol):
    """One run, open in one tracker. Used from one thread. Any error may come out of any call."""

    @property
    def run_id(self) -> str:
        """What finds this run again."""
        ...

    def record(self, scalars: Mapping[str, float], *, learner_step: int) -> None:
        """Numbers of one step, or of an evaluation after it, by tag. Values may be NaN or infinite."""
        ...

    def close(self, ended: RunEnd) -> None:
        """Hand over what is held back, and end."""
        ...
