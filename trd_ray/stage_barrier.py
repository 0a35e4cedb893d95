"""Keeps the trajectories of a step in one stage at a time."""

from __future__ import annotations

import asyncio


class StageBarrier:
    """Each of `num_parties` tasks calls `wait` once a stage; all go on when the last has come.

    Used where roles share their cores or GPUs: stages in turn leave each engine the whole machine
    and its largest batch. With `enabled` false, `wait` returns at once and each trajectory goes on
    by itself.
    """

    def __init__(self, *, num_parties: int, enabled: bool) -> None:
        self._num_parties = num_parties
        self._enabled = enabled
        self._num_arrived = 0
        self._open = asyncio.Event()

    async def wait(self) -> None:
        """Return when every party has called `wait` as often as this one has."""
        if not self._enabled:
            return
        self._num_arrived += 1
        if self._num_arrived < self._num_parties:
            await self._open.wait()
            return
        # The next stage waits on a new event, so that a fast task cannot pass two at once.
        self._num_arrived = 0
        opened, self._open = self._open, asyncio.Event()
        opened.set()
