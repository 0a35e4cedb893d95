"""The shared buffer: finished trajectories, until the learner takes them. Bounded, first in, first out.

It lives in the driver, through which every trajectory passes on its way from teacher to learner, and not
in a process of its own: that would cost two more copies and could die with what it holds. Large arrays
that came over Ray stay in the object store, where the trajectory only points to them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from trd_ray.types import Trajectory


class TrajectoryBuffer:
    """Consumes: trajectories from the producers, consumed and rejected ones. Produces: them, in order of
    arrival. `put` waits while `capacity` trajectories are held; `take` waits while none is."""

    def __init__(self, *, capacity: int, on_depth: Callable[[int], None] | None = None) -> None:
        """`on_depth` is told how many are held whenever that changes."""
        if capacity < 1:
            raise ValueError(f"TrajectoryBuffer: capacity is {capacity}; expected 1 or more")
        self._capacity = capacity
        self._on_depth = on_depth
        self._held: deque[Trajectory] = deque()
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held(self) -> tuple[Trajectory, ...]:
        """What nobody has taken yet."""
        return tuple(self._held)

    async def put(self, trajectory: Trajectory) -> None:
        """Add one trajectory; waits while the buffer is full."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._held) < self._capacity)
            self._held.append(trajectory)
            self._tell()

    async def take(self, most: int) -> tuple[Trajectory, ...]:
        """Remove and return the oldest trajectories: at least one, at most `most`.

        Raises `ValueError` if `most` is below 1.
        """
        if most < 1:
            raise ValueError(f"TrajectoryBuffer.take: got most={most}; expected 1 or more")
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._held) > 0)
            taken = tuple(self._held.popleft() for _ in range(min(most, len(self._held))))
            self._tell()
        return taken

    def _tell(self) -> None:
        self._changed.notify_all()
        if self._on_depth is not None:
            self._on_depth(len(self._held))
