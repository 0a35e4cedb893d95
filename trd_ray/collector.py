"""From trajectories in order of arrival to the trajectories of one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trd_ray.choices import OverStale
from trd_ray.ledger import PromptKey, prompt_key
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.staleness import staleness
from trd_ray.trajectories import rejected
from trd_ray.types import Prompt, Trajectory


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A whole step, and what became of the over-stale ones that came with it."""

    trajectories: tuple[Trajectory, ...] = ()
    """As many as the step has, consumed and rejected ones."""
    dropped: tuple[Trajectory, ...] = ()
    """Rejected as stale; they are no part of the step's number."""
    refreshed: tuple[Prompt, ...] = ()
    """To be made anew."""


@dataclass(kw_only=True)
class _Sorted:
    whole: list[Trajectory] = field(default_factory=list)
    dropped: list[Trajectory] = field(default_factory=list)
    refreshed: list[Prompt] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Unit:
    number: int
    """In order of the arrival of their first trajectories."""
    trajectories: list[Trajectory] = field(default_factory=list)


class StepCollector:
    """Holds what was taken from the buffer until a step is whole.

    A unit is one trajectory, or all of a problem where their rewards are compared (GRPO): those are learnt
    from together, and are dropped or made anew together.

    `collect` is called at each arrival, so it looks at what is new only; at all that is held it looks once
    a learner's version, and once a step.
    """

    def __init__(
        self, *, units_per_step: int, unit_size: int, max_staleness: int, over_stale: OverStale
    ) -> None:
        self._units_per_step = units_per_step
        self._unit_size = unit_size
        self._max_staleness = max_staleness
        self._over_stale = over_stale
        self._units: dict[PromptKey, _Unit] = {}
        self._num_units = 0
        self._num_whole = 0
        # Whole units that were not yet looked at for the version below.
        self._unjudged: list[PromptKey] = []
        self._judged_version: int | None = None

    @property
    def held(self) -> tuple[Trajectory, ...]:
        """What was added and not yet part of a step."""
        return tuple(trajectory for unit in self._units.values() for trajectory in unit.trajectories)

    def add(self, trajectories: Sequence[Trajectory]) -> None:
        """In order of arrival."""
        for trajectory in trajectories:
            key = self._unit(trajectory)
            unit = self._units.get(key)
            if unit is None:
                self._num_units += 1
                unit = self._units[key] = _Unit(number=self._num_units)
            unit.trajectories.append(trajectory)
            if len(unit.trajectories) == self._unit_size:
                self._num_whole += 1
                self._unjudged.append(key)

    def collect(self, *, learner_version: int) -> Collected:
        """The whole units of one step, oldest weights first, if there are enough that are fresh; what is
        over-stale is taken out at once either way.

        Args:
            learner_version: completed optimizer steps of the learner that will consume them.
        """
        done = _Sorted()
        self._take_out_stale(done, learner_version)
        if self._num_whole >= self._units_per_step:
            fresh = self._whole()
            # The oldest first: it is the next to be too old. In order of arrival among those of one version.
            fresh.sort(key=lambda key: _oldest_version(self._units[key].trajectories, learner_version))
            for key in fresh[: self._units_per_step]:
                done.whole += self._pop(key)
        return Collected(
            trajectories=tuple(done.whole), dropped=tuple(done.dropped), refreshed=tuple(done.refreshed)
        )

    def _whole(self) -> list[PromptKey]:
        return [key for key, unit in self._units.items() if len(unit.trajectories) == self._unit_size]

    def _pop(self, key: PromptKey) -> list[Trajectory]:
        """The trajectories of a whole unit, which is no longer held."""
        self._num_whole -= 1
        return self._units.pop(key).trajectories

    def _take_out_stale(self, done: _Sorted, learner_version: int) -> None:
        # What was fresh for a version stays so until the next.
        suspects = self._unjudged
        if learner_version != self._judged_version:
            suspects = self._whole()
        for key in sorted(suspects, key=lambda key: self._units[key].number):
            if any(self._is_stale(t, learner_version) for t in self._units[key].trajectories):
                self._take_out(self._pop(key), done)
        self._unjudged = []
        self._judged_version = learner_version

    def _take_out(self, unit: list[Trajectory], done: _Sorted) -> None:
        if self._over_stale is OverStale.REFRESH:
            done.refreshed += [trajectory.prompt for trajectory in unit]
            return
        for trajectory in unit:
            is_consumed = trajectory.outcome is Outcome.CONSUMED
            done.dropped.append(rejected(trajectory, RejectReason.STALE) if is_consumed else trajectory)

    def _is_stale(self, trajectory: Trajectory, learner_version: int) -> bool:
        # With 0 nothing can be stale unless the program is wrong, which whoever consumes it finds out.
        if self._max_staleness == 0 or self._over_stale is OverStale.USE:
            return False
        if trajectory.outcome is Outcome.REJECTED:
            return False
        return staleness(trajectory, learner_version=learner_version) > self._max_staleness

    def _unit(self, trajectory: Trajectory) -> PromptKey:
        prompt_id, epoch, sample_index = prompt_key(trajectory.prompt)
        return prompt_id, epoch, sample_index if self._unit_size == 1 else 0


def _oldest_version(unit: list[Trajectory], learner_version: int) -> int:
    return min(learner_version - staleness(t, learner_version=learner_version) for t in unit)
