"""Calls of learner ranks and engines that meet in the same broadcasts: they end together or break off
together, and then somebody is to blame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayTaskError

from actors.calls import call
from actors.engine import EngineFailedError
from actors.members import Member, NamedActor
from trd_ray.errors import ActorTimeoutError, LearnerLostError, TrdRayError, brief, describe

_GRACE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class JointResult:
    """What came of one."""

    of_learners: tuple[Any, ...]
    """Results of the ranks, in their order; empty if it broke off."""
    of_members: Mapping[Member, Any]
    """Results of the engines that gave one."""
    lost: Mapping[Member, Exception]
    """Engines that are to blame: dead, silent, or named by the sender."""
    error: Exception | None
    """Why it broke off; None if it did not."""


async def joint_call(
    rank_method: str,
    member_method: str,
    learners: Sequence[tuple[NamedActor, Any]],
    members: Mapping[Member, Any],
    *,
    timeout_s: float,
    limit_s: float,
) -> JointResult:
    """Wait for calls that are under way.

    Args:
        rank_method, member_method: what is called, for messages.
        learners: ranks and the references of their calls.
        members: the references of the engines' calls.
        timeout_s: within which an end notices by itself that another one does not come.
        limit_s: of the whole, for an end that does not notice anything.

    Raises:
        LearnerLostError: a rank died or does not answer.
    """
    ranks = {rank.name: _start(ref, rank.name, rank_method, limit_s=limit_s) for rank, ref in learners}
    engines = {
        member: _start(ref, member.actor.name, member_method, limit_s=limit_s)
        for member, ref in members.items()
    }
    everyone = [*ranks.values(), *engines.values()]
    started = time.monotonic()
    try:
        _, waiting = await asyncio.wait(everyone, return_when=asyncio.FIRST_EXCEPTION)
        if waiting:
            # One broke off. The others notice it within their own limit; who does not is stuck.
            await asyncio.wait(waiting, timeout=timeout_s + _GRACE_S)
    finally:
        for calling in everyone:
            calling.cancel()
    waited_s = time.monotonic() - started
    rank_errors = {name: _error(calling, name, rank_method, waited_s) for name, calling in ranks.items()}
    _require_ranks(rank_errors, rank_method)
    errors = {
        member: error
        for member, calling in engines.items()
        if (error := _error(calling, member.actor.name, member_method, waited_s))
    }
    sender_error = next((error for error in rank_errors.values() if error), None)
    broke_off = sender_error or next(iter(errors.values()), None)
    return JointResult(
        of_learners=() if sender_error else tuple(calling.result() for calling in ranks.values()),
        of_members={member: calling.result() for member, calling in engines.items() if member not in errors},
        lost=_to_blame(errors, sender_error),
        error=broke_off,
    )


def _start(ref: Any, name: str, method: str, *, limit_s: float) -> asyncio.Future[Any]:  # noqa: ANN401
    return asyncio.ensure_future(call(ref, actor=name, method=method, timeout_s=limit_s))


def _error(calling: asyncio.Future[Any], name: str, method: str, waited_s: float) -> Exception | None:
    if not calling.done() or calling.cancelled():
        return ActorTimeoutError(
            describe(
                "a part of a push does not answer",
                where=f"{name}.{method}",
                got=f"nothing after {waited_s:.1f} s, long after the others broke off",
                expected="an answer or an error",
                remedy="see its log",
            )
        )
    error = calling.exception()
    assert error is None or isinstance(error, Exception)  # others are not set on a future
    return error


def _require_ranks(errors: Mapping[str, Exception | None], method: str) -> None:
    """What a rank raises on purpose is the sender's verdict on an engine. What is raised about a rank, or by
    it in place of its work, is its end: no engine could do better with it."""
    for name, error in errors.items():
        is_verdict = isinstance(error, RayTaskError) and isinstance(error, TrdRayError | ValueError)
        if error is not None and not is_verdict:
            raise LearnerLostError(
                describe(
                    "a learner rank is lost",
                    where=f"{name}.{method}",
                    got=brief(error),
                    expected="an answer of every rank",
                    remedy=f"see the log of {name}",
                )
            ) from error


def _to_blame(errors: Mapping[Member, Exception], sender_error: Exception | None) -> dict[Member, Exception]:
    """Dead and silent engines; if there are none, those that the sender names, as far as they failed."""
    gone = {
        member: error
        for member, error in errors.items()
        if not isinstance(error, RayTaskError) or isinstance(error, EngineFailedError)
    }
    if gone or sender_error is None:
        return gone or dict(errors)
    return {m: error for m, error in errors.items() if repr(m.actor.name) in str(sender_error)}
