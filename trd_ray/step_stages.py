"""What the trajectories of one step share: the clock, the barrier, whose turn it is on shared devices,
the progress shown to people."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trd_ray.device_turns import NoTurns
from trd_ray.interfaces import DeviceTurns
from trd_ray.observer import Observer
from trd_ray.stage_barrier import StageBarrier
from trd_ray.stage_clock import Stage, StageClock


class StepStages:
    """Entered by each of `num_trajectories` trajectories, stage by stage."""

    def __init__(
        self,
        *,
        num_trajectories: int,
        barrier: bool,
        clock: StageClock,
        observer: Observer,
        turns: DeviceTurns | None = None,
    ) -> None:
        """
        Args:
            turns: None where each role has its own devices; others need the barrier.
        """
        if turns is not None and not isinstance(turns, NoTurns) and not barrier:
            raise ValueError("StepStages: turns without a barrier; stages that overlap cannot take turns")
        self._num_trajectories = num_trajectories
        self._barrier = StageBarrier(num_parties=num_trajectories, enabled=barrier)
        self._clock = clock
        self._observer = observer
        self._turns = turns
        self._turn = asyncio.Lock()
        self._begun: Stage | None = None
        self._num_done: Counter[Stage] = Counter()

    @asynccontextmanager
    async def stage(self, stage: Stage) -> AsyncIterator[None]:
        """One trajectory is in `stage` while the block runs; the first to come begins its turn."""
        await self._begin(stage)
        with self._clock.stage(stage):
            yield
        self._num_done[stage] += 1
        self._observer.on_stage(stage, self._num_done[stage], self._num_trajectories)

    async def _begin(self, stage: Stage) -> None:
        if self._turns is None or self._begun is stage:
            return
        async with self._turn:
            if self._begun is not stage:
                await self._turns.begin(stage)
                self._begun = stage

    async def wait(self) -> None:
        """The end of a stage: wait for the other trajectories, if the configuration says so."""
        await self._barrier.wait()
