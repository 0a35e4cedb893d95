"""What the trajectories of one step share: the clock, the barrier, the progress shown to people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from trd_ray.observer import Observer
from trd_ray.stage_barrier import StageBarrier
from trd_ray.stage_clock import Stage, StageClock


class StepStages:
    """Entered by each of `num_trajectories` trajectories, stage by stage."""

    def __init__(
        self, *, num_trajectories: int, barrier: bool, clock: StageClock, observer: Observer
    ) -> None:
        self._num_trajectories = num_trajectories
        self._barrier = StageBarrier(num_parties=num_trajectories, enabled=barrier)
        self._clock = clock
        self._observer = observer
        self._num_done: Counter[Stage] = Counter()

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """One trajectory is in `stage` while the block runs."""
        with self._clock.stage(stage):
            yield
        self._num_done[stage] += 1
        self._observer.on_stage(stage, self._num_done[stage], self._num_trajectories)

    async def wait(self) -> None:
        """The end of a stage: wait for the other trajectories, if the configuration says so."""
        await self._barrier.wait()
