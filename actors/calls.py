"""Every remote call of the driver: awaited with a time limit, and an error that names the actor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TypeVar

import ray
from ray.exceptions import RayActorError

from trd_ray.errors import ActorLostError, ActorTimeoutError, describe

T = TypeVar("T")


async def call(ref: ray.ObjectRef[T], *, actor: str, method: str, timeout_s: float) -> T:
    """The result of one remote call.

    Raises `ActorTimeoutError` after `timeout_s` seconds (the call is cancelled), `ActorLostError`
    if the actor died, or what the method itself raised.
    """
    started = time.monotonic()
    try:
        return await asyncio.wait_for(asyncio.wrap_future(ref.future()), timeout_s)
    except asyncio.CancelledError:
        # Nobody waits for the answer any more; an engine must not go on decoding for it.
        ray.cancel(ref)
        raise
    except TimeoutError as error:
        if time.monotonic() - started < timeout_s:
            raise  # a TimeoutError that the method itself raised
        ray.cancel(ref)
        raise ActorTimeoutError(
            describe(
                "a remote call took too long",
                where=f"{actor}.{method}",
                got=f"no answer after {time.monotonic() - started:.0f} s",
                expected=f"an answer within {timeout_s:.0f} s",
                remedy=f"see the log of {actor}; if it is only slow, raise the limit under timeouts.*",
            )
        ) from error
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
