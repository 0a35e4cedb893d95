"""Keeps trajectories in the making, as far ahead of the learner as it may."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from trd_ray.activity import RoleActivity
from trd_ray.activity_records import WaitReason
from trd_ray.feed import PromptFeed
from trd_ray.ledger import PromptLedger
from trd_ray.production import Producer
from trd_ray.roles import Role
from trd_ray.step_stages import StepStages
from trd_ray.types import Prompt


class ProductionLoop:
    """Owns one task a trajectory.

    Consumes: problems, as many as `allow` says. Produces: trajectories in the producer's buffer. Waits for:
    the allowance, and a slot among `max_in_flight`. Unblocked by: `allow`, `again`, the end of a
    trajectory. Ends: never by itself; whoever cancels `run` waits until every trajectory is cancelled.
    The first error of a trajectory cancels the others and is raised.
    """

    def __init__(
        self,
        *,
        feed: PromptFeed,
        producer: Producer,
        ledger: PromptLedger,
        stages: Callable[[int], StepStages],
        problems_per_step: int,
        max_in_flight: int,
        activity: RoleActivity,
    ) -> None:
        """
        Args:
            stages: makes what the given number of trajectories, which begin together, share.
            max_in_flight: trajectories in the making at once; 0 for no bound but the allowance.
            activity: is told how many are, and when the allowance holds the generators back.
        """
        self._feed = feed
        self._producer = producer
        self._ledger = ledger
        self._stages = stages
        self._problems_per_step = problems_per_step
        self._slots = asyncio.Semaphore(max_in_flight) if max_in_flight else None
        self._again: deque[tuple[Prompt, ...]] = deque()
        self._allowed = 0
        self._changed = asyncio.Event()
        self._activity = activity

    def allow(self, num_problems: int) -> None:
        """Problems, since the run began, that may be drawn by now. Never takes back what was allowed."""
        self._allowed = max(self._allowed, num_problems)
        self._changed.set()

    def again(self, prompts: Sequence[Prompt]) -> None:
        """Make pending prompts once more, before any that are drawn later; they begin together."""
        if prompts:
            self._again.append(tuple(prompts))
            self._changed.set()

    async def run(self) -> None:
        """See the class. Raises what a trajectory's stages raise."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    cohort = await self._next_cohort()
                    stages = self._stages(len(cohort))
                    for prompt in cohort:
                        if self._slots is not None:
                            await self._slots.acquire()
                        tasks.create_task(self._make(prompt, stages))
        except BaseExceptionGroup as failures:
            # The siblings were cancelled because of the first; that one is the news.
            raise failures.exceptions[0] from failures

    async def _next_cohort(self) -> tuple[Prompt, ...]:
        """Prompts that begin together: those of one step, or what may be drawn of it.

        What is made again begins with the rest of its step: two cohorts of one step would wait for each
        other where roles take turns on a device.
        """
        while True:
            again = self._again.popleft() if self._again else ()
            num_left = self._allowed - self._feed.num_drawn
            if num_left > 0:
                return again + await self._draw(min(num_left, self._problems_per_step))
            if again:
                return again
            self._changed.clear()
            with self._activity.holding(Role.GENERATOR, WaitReason.STALENESS):
                await self._changed.wait()

    async def _draw(self, num_problems: int) -> tuple[Prompt, ...]:
        """Each is pending as soon as it is drawn, whenever this is cancelled or a checkpoint is written."""
        cohort: list[Prompt] = []
        for _ in range(num_problems):
            prompts = self._feed.draw(1)
            self._ledger.admit(prompts)
            cohort += prompts
            # Encoding thousands of prompts takes seconds, in which answers would not be passed on.
            await asyncio.sleep(0)
        return tuple(cohort)

    async def _make(self, prompt: Prompt, stages: StepStages) -> None:
        try:
            with self._activity.in_flight:
                await self._producer.produce(prompt, stages)
        finally:
            if self._slots is not None:
                self._slots.release()
