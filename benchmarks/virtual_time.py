"""An event loop whose clock does not wait: with nothing left to do it jumps to the next timer.

Hours of waiting pass in the time that the code in between takes, in the same order as they would. What reads
another clock (`time.monotonic`) sees real time. A loop that has no timer and nothing to do can never go on:
that raises at once what would be a hang.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")

# Threads call the loop when they end; this only bounds a lost call.
_THREAD_POLL_S = 1.0


class NothingWillHappenError(RuntimeError):
    """Every task waits for something that no timer and no thread will bring."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time stands still while code runs or a thread works, and is never waited for.

    With `inline_threads` the work of `asyncio.to_thread` is done at once in the loop's own thread: the
    order of everything is then the same in each run.
    """

    def __init__(self, *, inline_threads: bool = False) -> None:
        self._now = 0.0
        self._inline_threads = inline_threads
        self._num_threads = 0
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def _jump(self, timeout: float | None) -> float | None:
        """What the selector may really wait, in seconds; moves the clock by what it need not."""
        if timeout is not None and timeout <= 0:
            return timeout
        if self._num_threads:
            return _THREAD_POLL_S
        if timeout is None:
            raise NothingWillHappenError(
                f"at {self._now:.3f} virtual seconds no timer is set and nothing is ready; expected either"
            )
        self._now += timeout
        return 0.0

    def run_in_executor(  # type: ignore[override]  # the base class has further variadic types
        self, executor: Executor | None, func: Callable[..., T], *args: object
    ) -> asyncio.Future[T]:
        if self._inline_threads:
            return self._run_inline(func, *args)
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self._num_threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    def _thread_ended(self, future: asyncio.Future[Any]) -> None:
        self._num_threads -= 1

    def _run_inline(self, func: Callable[..., T], *args: object) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whoever awaits the thread gets what it raised
            future.set_exception(error)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        # It waits for a thread of its own, which no timer announces.
        self._num_threads += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._num_threads -= 1


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, jump: Callable[[float | None], float | None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(self._jump(timeout))


def run_virtual(main: Coroutine[Any, Any, T], *, inline_threads: bool = False) -> T:
    """`asyncio.run` on a `VirtualTimeLoop`."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(inline_threads=inline_threads)) as runner:
        return runner.run(main)
