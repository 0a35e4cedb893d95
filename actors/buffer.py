"""The buffer actor: a `TrajectoryBuffer` in a process of its own."""

from __future__ import annotations

import ray

from trd_ray.buffer import TrajectoryBuffer
from trd_ray.types import Trajectory


class BufferHolder:
    """Passes calls on; every decision is in `trd_ray/buffer.py`."""

    def __init__(self, *, capacity: int) -> None:
        self._buffer = TrajectoryBuffer(capacity=capacity)

    async def put(self, trajectory: Trajectory) -> None:
        await self._buffer.put(trajectory)

    async def take(self, num: int) -> tuple[Trajectory, ...]:
        return await self._buffer.take(num)


BufferActor = ray.remote(BufferHolder)
