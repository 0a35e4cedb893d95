"""Errors in one line, for a log."""

from __future__ import annotations

import pytest

from trd_ray.errors import ActorTimeoutError, RunFailedError, brief, describe

SLOW = describe(
    "a remote call took too long",
    where="generator-0.ping",
    got="no answer after 5 s",
    expected="an answer within 5 s",
    remedy="see its log",
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ActorTimeoutError(SLOW), "a remote call took too long: generator-0.ping: no answer after 5 s"),
        (OSError("disk\nfull"), "disk"),
        (KeyError(), "KeyError()"),
        (
            RunFailedError(describe("lost", where="a", got=f"x: {SLOW}", expected="b", remedy="c")),
            "lost: a: x: a remote call took too long",
        ),
    ],
)
def test_one_line_says_what_and_where_and_what_was_found(error: Exception, line: str):
    assert brief(error) == line


def test_what_an_actor_raised_is_told_and_not_where_its_stack_was():
    wrapped = RuntimeError("ray::Rank.push() (pid=1)\n  File ...")
    wrapped.cause = ActorTimeoutError(SLOW)  # type: ignore[attr-defined]
    assert brief(wrapped) == brief(wrapped.cause)
