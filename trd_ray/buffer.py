"""The shared buffer: bounded, first in, first out. Pure; the Ray actor holds one of these."""

from __future__ import annotations

import asyncio
from collections import deque

from trd_ray.types import Trajectory


class TrajectoryBuffer:
    """Implements `trd_ray.interfaces.Buffer` in the process that owns it.

    Consumes: trajectories from the producers, consumed and rejected ones. Produces: batches for the
    learner. `put` waits while `capacity` trajectories are held; `take` waits until enough are there.
    """

    def __init__(self, *, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"TrajectoryBuffer: capacity is {capacity}; expected 1 or more")
        self._capacity = capacity
        self._held: deque[Trajectory] = deque()
        self._changed = asyncio.Condition()

    async def put(self, trajectory: Trajectory) -> None:
        """Add one trajectory; waits while the buffer is full."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._held) < self._capacity)
            self._held.append(trajectory)
            self._changed.notify_all()

    async def take(self, num: int) -> tuple[Trajectory, ...]:
        """Remove and return the oldest `num` trajectories, in order of arrival.

        Raises `ValueError` if `num` can never be held at once.
        """
        if not 1 <= num <= self._capacity:
            raise ValueError(
                f"TrajectoryBuffer.take: got num={num}; expected 1 .. capacity ({self._capacity})"
            )
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._held) >= num)
            taken = tuple(self._held.popleft() for _ in range(num))
            self._changed.notify_all()
        return taken
