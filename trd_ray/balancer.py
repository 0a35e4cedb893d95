"""Which member of a group takes the next request: the one with the fewest outstanding tokens that has a
free slot. Pure; the costs of a request do not grow with the size of the group but for a logarithm."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque

_COMPACT_ABOVE = 64
_MOST_STALE = 4


class Balancer:
    """Slots and outstanding tokens of the members of one group, by their index.

    Slots bound what a member holds, so that the time limit of a call, which begins when the slot is taken,
    does not count the time that a request spends in the queue. Waiting requests are served in order.
    """

    def __init__(self, *, num_slots: int) -> None:
        """
        Args:
            num_slots: requests that one member holds at once.
        """
        if num_slots < 1:
            raise ValueError(f"Balancer: num_slots is {num_slots}; expected 1 or more")
        self._num_slots = num_slots
        self._tokens: dict[int, int] = {}
        self._held: dict[int, int] = {}
        self._stamp: dict[int, int] = {}
        self._stamps = 0
        # Entries whose stamp is not the member's last one are out of date.
        self._heap: list[tuple[int, int, int]] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed: Exception | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def members(self) -> tuple[int, ...]:
        return tuple(self._held)

    def add(self, member: int) -> None:
        """A member serves from now on. Raises `ValueError` if it does already."""
        if member in self._held:
            raise ValueError(f"Balancer.add: member {member} is there already")
        self._tokens[member] = self._held[member] = 0
        self._offer(member)
        for _ in range(self._num_slots):
            self._wake_one()

    def remove(self, member: int) -> None:
        """A member serves no more; what it holds is forgotten. Safe to call again."""
        self._tokens.pop(member, None)
        self._held.pop(member, None)
        self._stamp.pop(member, None)

    def close(self, error: Exception) -> None:
        """Nobody will serve any more: whoever waits, now or later, gets `error`."""
        self._closed = error
        while self._waiting:
            self._wake_one()

    async def acquire(self, num_tokens: int) -> int:
        """A slot of the member with the least to do; waits while there is none.

        Raises the error of `close`.
        """
        while True:
            if self._closed is not None:
                raise self._closed
            # Who came later must not overtake those that wait.
            if not self._waiting and (member := self._pop()) is not None:
                return self._take(member, num_tokens)
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake_one()
                elif waiter in self._waiting:  # else `_wake_one` has met it, and passed it over
                    self._waiting.remove(waiter)
                raise
            if (member := self._pop()) is not None:
                return self._take(member, num_tokens)

    def release(self, member: int, num_tokens: int) -> None:
        """Give back a slot. Of a member that was removed meanwhile there is nothing to give back."""
        if member not in self._held:
            return
        self._tokens[member] -= num_tokens
        self._held[member] -= 1
        self._offer(member)
        self._wake_one()

    def _take(self, member: int, num_tokens: int) -> int:
        self._tokens[member] += num_tokens
        self._held[member] += 1
        if self._held[member] < self._num_slots:
            self._offer(member)
        return member

    def _wake_one(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _offer(self, member: int) -> None:
        """Enter the member into the heap with its present load."""
        self._stamps += 1
        self._stamp[member] = self._stamps
        heapq.heappush(self._heap, (self._tokens[member], self._stamps, member))
        if len(self._heap) > _COMPACT_ABOVE + _MOST_STALE * len(self._held):
            self._heap = [entry for entry in self._heap if self._stamp.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def _pop(self) -> int | None:
        """The member with the fewest tokens that has a free slot; None if there is none."""
        while self._heap:
            _, stamp, member = heapq.heappop(self._heap)
            if self._stamp.get(member) == stamp:
                return member
        return None
