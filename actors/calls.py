"""Every remote call of the driver: awaited with a time limit, and an error that names the actor."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TypeVar

import ray
from ray.exceptions import RayActorError

from trd_ray.errors import ActorLostError, ActorTimeoutError, describe

log = logging.getLogger(__name__)

T = TypeVar("T")


# A loop that wakes so much later than it asked for has not been running: the process was stopped, or the
# machine slept. Answers came meanwhile that nobody could take.
_PAUSE_S = 1.0
_MOST_PAUSES = 4


async def call(ref: ray.ObjectRef[T], *, actor: str, method: str, timeout_s: float) -> T:
    """The result of one remote call.

    Time in which this process itself was stopped does not count: the actor gets its whole limit afterwards.

    Raises `ActorTimeoutError` after `timeout_s` seconds (the call is cancelled), `ActorLostError`
    if the actor died, or what the method itself raised.
    """
    started = time.monotonic()
    answer = asyncio.wrap_future(ref.future())
    try:
        for _ in range(_MOST_PAUSES):
            was_paused = await _wait(answer, timeout_s=timeout_s)
            if answer.done():
                return answer.result()
            if not was_paused:
                break
            log.warning("this process did not run for a while; %s.%s gets its time anew", actor, method)
    except asyncio.CancelledError:
        _give_up(ref, answer)
        raise
    except RayActorError as error:
        raise ActorLostError(
            describe(
                "an actor died",
                where=f"{actor}.{method}",
                got=str(error).strip().splitlines()[0],
                expected="an answer",
                remedy=f"see the log of {actor} (out of memory is the usual reason); continue with --resume",
            )
        ) from error
    _give_up(ref, answer)
    raise ActorTimeoutError(
        describe(
            "a remote call took too long",
            where=f"{actor}.{method}",
            got=f"no answer after {time.monotonic() - started:.0f} s",
            expected=f"an answer within {timeout_s:.0f} s",
            remedy=f"see the log of {actor}; if it is only slow, raise the limit under timeouts.*",
        )
    )


async def _wait(answer: asyncio.Future[T], *, timeout_s: float) -> bool:
    """Wait for an answer; whether this process did not run for a part of the time."""
    started = time.monotonic()
    await asyncio.wait({answer}, timeout=timeout_s)
    return time.monotonic() - started - timeout_s > _PAUSE_S


def _give_up(ref: ray.ObjectRef[T], answer: asyncio.Future[T]) -> None:
    """Nobody waits for the answer any more; an engine must not go on decoding for it."""
    ray.cancel(ref)
    answer.cancel()


async def call_all(
    refs: Sequence[ray.ObjectRef[T]], *, actors: Sequence[str], method: str, timeout_s: float
) -> list[T]:
    """The results of one method on several actors, in their order. The first error is raised."""
    return list(
        await asyncio.gather(
            *(
                call(ref, actor=actor, method=method, timeout_s=timeout_s)
                for ref, actor in zip(refs, actors, strict=True)
            )
        )
    )
