"""What a pool says of its members when they fail."""

from __future__ import annotations

from actors.members import Member
from trd_ray.errors import (
    ActorLostError,
    ActorTimeoutError,
    RunFailedError,
    brief,
    describe,
    unwrapped,
)
from trd_ray.outcomes import RejectReason


def broken_start(member: Member, error: Exception) -> ActorLostError:
    """An actor whose start raised what nobody expected."""
    inner = unwrapped(error)
    lines = str(inner).strip().splitlines()
    return ActorLostError(
        describe(
            "an actor cannot start",
            where=f"{member.actor.name}.start",
            got=f"{type(inner).__name__}: {lines[0]}" if lines else type(inner).__name__,
            expected="an engine that serves",
            remedy=f"the traceback is in the log of {member.actor.name}; `trd-ray train --local` shows it",
        )
    )


def nonsense(member: Member, method: str, reason: RejectReason) -> RunFailedError:
    """An answer that no request can be at fault for."""
    return RunFailedError(
        describe(
            "an engine answers nonsense",
            where=f"{member.actor.name}.{method}",
            got=f"{reason.value}, {member.num_nonsense + 1} times in a row",
            expected="finite logprobs of as many tokens as were asked for at most",
            remedy=f"see the log of {member.actor.name}",
        )
    )


def too_many(role: str, member: Member, error: Exception, *, num_restarts: int, most: int) -> RunFailedError:
    """Of deaths, the last of which was that of `member`."""
    return RunFailedError(
        describe(
            f"a {role} failed once more than is put up with",
            where=member.actor.name,
            got=f"{num_restarts} restarts of {role}s in this run, then: {error}",
            expected=f"at most {most} (faults.max_restarts)",
            remedy=f"see the log of {member.actor.name}; then --resume, which starts counting anew",
        )
    )


def too_slow(member: Member, elapsed_s: float, *, limit_s: float) -> ActorTimeoutError:
    """A replacement that does not come."""
    return ActorTimeoutError(
        describe(
            "a replacement took too long",
            where=f"{member.actor.name}: start and weights",
            got=f"not ready after {elapsed_s:.0f} s",
            expected=f"ready within {limit_s:.0f} s",
            remedy=f"see the log of {member.actor.name}; raise timeouts.start_s if it is only slow",
        )
    )


def gave_up(member: Member, method: str, error: Exception, *, num_attempts: int) -> RunFailedError:
    """Of a request that nobody could answer."""
    return RunFailedError(
        describe(
            "a request failed at every attempt",
            where=f"{member.actor.name}.{method}, the last of {num_attempts}",
            got=brief(error),
            expected="an answer",
            remedy=f"see the log of {member.actor.name}; then --resume",
        )
    )
