"""Where the wall time of a step went.

With per-sample streaming several stages run at once, and plain durations would add up to more
than the step. So each instant is shared among the stages that are busy, in proportion to the
samples in them, and the shares of a step add up to its wall time. With a stage barrier only one
stage is busy at a time, and its share is its plain duration.

A clock is used from one event loop; it is not thread-safe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum


class Stage(StrEnum):
    """The stages of a step, in their order."""

    ROLLOUT = "rollout"
    REFINE = "refine"
    SCORE = "score"
    LEARN = "learn"
    SYNC = "sync"


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """From the first sample's entry into a stage to the last one's exit, in seconds since the
    start of the step."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """The wall time of one step, in seconds. Shares and `other_s` add up to `step_s`."""

    shares: Mapping[Stage, float]
    """Each stage's share; every stage is a key."""
    other_s: float
    """Time in which no sample was in any stage."""
    step_s: float
    spans: Mapping[Stage, Span] = field(default_factory=dict)
    """Stages that were entered. Unlike shares, spans of stages that overlap do overlap."""

    def share_s(self, stage: Stage) -> float:
        return self.shares.get(stage, 0.0)

    def span_s(self, stage: Stage) -> float:
        """Length of the stage's span; 0 if the stage was not entered."""
        return self.spans[stage].duration_s if stage in self.spans else 0.0


class StageClock:
    """Attributes wall time to stages.

    >>> clock = StageClock()
    >>> with clock.stage(Stage.ROLLOUT):  # once a sample
    ...     pass
    >>> times = clock.lap()  # ends this step and starts the next
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """`now` gives seconds and never goes back. The first step starts at once."""
        self._now = now
        self._busy = dict.fromkeys(Stage, 0)
        self.start()

    def start(self) -> None:
        """Start a step anew and forget what was measured since the last one, such as an evaluation."""
        self._start_at(self._now())

    def _start_at(self, instant: float) -> None:
        self._start = self._last = instant
        self._shares = dict.fromkeys(Stage, 0.0)
        # Samples that are in a stage already enter it, for this step, at its start.
        self._first_entry = {stage: instant for stage in Stage if self._busy[stage]}
        self._last_exit: dict[Stage, float] = {}

    @contextmanager
    def stage(self, stage: Stage, *, num_samples: int = 1) -> Iterator[None]:
        """`num_samples` samples are in `stage` while the block runs, whichever way it ends.

        A whole batch in the learner weighs as many samples as it has.
        """
        if num_samples < 1:
            raise ValueError(f"StageClock.stage: num_samples is {num_samples}; expected 1 or more")
        self._attribute()
        self._first_entry.setdefault(stage, self._last)
        self._busy[stage] += num_samples
        try:
            yield
        finally:
            self._attribute()
            self._busy[stage] -= num_samples
            self._last_exit[stage] = self._last

    def lap(self) -> StageTimes:
        """End the step and start the next one. A sample still in a stage is split between both."""
        self._attribute()
        end = self._last
        step_s = end - self._start
        spans = {}
        for stage, entry in self._first_entry.items():
            leave = end if self._busy[stage] else self._last_exit[stage]
            spans[stage] = Span(start_s=entry - self._start, end_s=leave - self._start)
        times = StageTimes(
            shares=dict(self._shares),
            # The remainder and not a sum of its own, so that the parts cannot drift from the whole.
            other_s=max(0.0, step_s - sum(self._shares.values())),
            step_s=step_s,
            spans=spans,
        )
        # The next step begins where this one ended: no instant is lost between them.
        self._start_at(end)
        return times

    def _attribute(self) -> None:
        """Share the time since the last change among the stages that were busy."""
        now = self._now()
        total = sum(self._busy.values())
        if total:
            for stage, count in self._busy.items():
                self._shares[stage] += (now - self._last) * count / total
        self._last = now
