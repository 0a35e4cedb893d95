"""Turns concurrent single requests into batches for a model that computes batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


class MicroBatcher(Generic[Request, Result]):
    """Collects what is asked for at the same time, computes it in one thread, hands results out.

    While a batch computes, further requests gather for the next one; they are bounded by what
    their callers have in flight. Requests keep their order of arrival. An error of `compute` goes
    to each caller of that batch.
    """

    def __init__(self, compute: Callable[[Sequence[Request]], Sequence[Result]], *, max_batch: int) -> None:
        if max_batch < 1:
            raise ValueError(f"MicroBatcher: max_batch is {max_batch}; expected 1 or more")
        self._compute = compute
        self._max_batch = max_batch
        self._waiting: list[tuple[Request, asyncio.Future[Result]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, request: Request) -> Result:
        """The result of one request. Raises what `compute` raises."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        # One turn of the loop lets the other callers of this moment join the first batch.
        await asyncio.sleep(0)
        while self._waiting:
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            live = [(request, future) for request, future in batch if not future.done()]
            if not live:
                continue
            outcome = await asyncio.gather(
                asyncio.to_thread(self._compute_all, [request for request, _ in live]), return_exceptions=True
            )
            _deliver([future for _, future in live], outcome[0])

    def _compute_all(self, requests: Sequence[Request]) -> Sequence[Result]:
        results = self._compute(requests)
        if len(results) != len(requests):
            raise ValueError(
                f"MicroBatcher: compute gave {len(results)} results for {len(requests)} requests"
            )
        return results


def _deliver(futures: list[asyncio.Future[Result]], outcome: Sequence[Result] | BaseException) -> None:
    if isinstance(outcome, BaseException):
        for future in futures:
            if not future.done():
                future.set_exception(outcome)
        return
    for future, result in zip(futures, outcome, strict=True):
        if not future.done():
            future.set_result(result)
