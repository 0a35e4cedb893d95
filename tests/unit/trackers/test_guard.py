"""Whatever a tracker does, the run goes on, and what it lacks is counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from tests.unit.trackers.scripted import ScriptedTracker
from trd_ray.trackers.guard import GuardedTracker, GuardLimits, GuardReport
from trd_ray.trackers.session import RunEnd

QUICK = GuardLimits(pauses_s=(0.01, 0.01), max_rows=3, open_s=5.0, close_s=5.0)
PATIENT = GuardLimits(pauses_s=(600.0,), max_rows=1000)


def waiting_for(release: threading.Event) -> Callable[[int], None]:
    def before(step: int) -> None:
        release.wait()

    return before


def ended(guard: GuardedTracker, *, within_s: float = 5.0) -> GuardReport:
    guard.ask_to_end(RunEnd.FINISHED)
    return guard.join(deadline=time.monotonic() + within_s)


def opened(tracker: ScriptedTracker, limits: GuardLimits = QUICK) -> GuardedTracker:
    guard = GuardedTracker("scripted", lambda: tracker, limits)
    assert guard.wait_open(deadline=time.monotonic() + 5.0) == "id"
    return guard


def test_rows_are_recorded_in_order_in_a_thread_of_their_own():
    tracker = ScriptedTracker()
    guard = opened(tracker, GuardLimits())
    for step in range(1, 51):
        guard.record({"loss": 1 / step}, learner_step=step)
    report = ended(guard)
    assert tracker.rows == [(step, {"loss": 1 / step}) for step in range(1, 51)]
    assert tracker.ended is RunEnd.FINISHED
    assert tracker.thread not in (None, threading.get_ident())
    assert report == GuardReport(num_recorded=50, num_failures=0, num_lost=0, is_hung=False, reason="")


def test_a_row_that_fails_is_tried_again_and_the_reason_is_said_once(caplog):
    failing = {2: 2, 3: 1}

    def before(step: int) -> None:
        if failing.get(step, 0):
            failing[step] -= 1
            raise ConnectionError(f"no route for {step}")

    tracker = ScriptedTracker(before=before)
    guard = opened(tracker)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            guard.record({}, learner_step=step)
        deadline = time.monotonic() + 5.0
        while tracker.steps != [1, 2, 3]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        report = ended(guard)
    assert (report.num_recorded, report.num_failures, report.num_lost) == (3, 3, 0)
    assert report.reason == "ConnectionError: no route for 2"
    said = [r.getMessage() for r in caplog.records]
    assert said == ["scripted does not record, and is tried again: ConnectionError: no route for 2"]


def test_a_row_that_always_fails_is_lost_and_the_next_one_is_not():
    def before(step: int) -> None:
        if step == 1:
            raise ValueError("never this one")

    tracker = ScriptedTracker(before=before)
    guard = opened(tracker)
    guard.record({}, learner_step=1)
    guard.record({}, learner_step=2)
    deadline = time.monotonic() + 5.0
    while tracker.steps != [2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    report = ended(guard)
    assert (report.num_recorded, report.num_failures, report.num_lost) == (1, 3, 1)


def test_a_broken_tracker_ends_at_once_though_its_next_try_is_far_off():
    def before(step: int) -> None:
        raise OSError(28, "No space left on device")

    tracker = ScriptedTracker(before=before)
    guard = opened(tracker, PATIENT)
    for step in (1, 2, 3):
        guard.record({}, learner_step=step)
    report = ended(guard)
    assert not report.is_hung
    assert report.num_lost == 3 and report.num_recorded == 0
    assert tracker.ended is RunEnd.FINISHED  # it may still have something to hand over


def test_a_hanging_tracker_holds_up_neither_the_run_nor_its_end():
    release = threading.Event()
    tracker = ScriptedTracker(before=waiting_for(release))
    guard = opened(tracker)
    start = time.monotonic()
    for step in range(1, 11):
        guard.record({}, learner_step=step)
    report = ended(guard, within_s=0.2)
    assert time.monotonic() - start < 5.0
    assert report.is_hung
    assert report.num_lost == 10  # three wait, seven were pushed out
    release.set()


def test_a_row_that_was_pushed_out_while_it_was_tried_is_not_lost():
    entered, release = threading.Event(), threading.Event()

    def before(step: int) -> None:
        entered.set()
        assert release.wait(5.0)

    tracker = ScriptedTracker(before=before)
    guard = opened(tracker)
    guard.record({}, learner_step=1)
    assert entered.wait(5.0)
    for step in (2, 3, 4):
        guard.record({}, learner_step=step)
    release.set()
    report = ended(guard)
    assert tracker.steps == [1, 2, 3, 4]
    assert (report.num_recorded, report.num_lost) == (4, 0)


def test_an_error_at_the_end_is_counted(caplog):
    class Unclosable(ScriptedTracker):
        def close(self, ended: RunEnd) -> None:
            raise RuntimeError("the server is gone")

    with caplog.at_level(logging.WARNING):
        report = ended(opened(Unclosable()))
    assert report.num_failures == 1 and "the server is gone" in report.reason
    assert "the server is gone" in caplog.text


def test_opening_has_a_limit_and_its_error_is_passed_on():
    def refuse() -> ScriptedTracker:
        raise PermissionError("not for you")

    with pytest.raises(PermissionError, match="not for you"):
        GuardedTracker("scripted", refuse, QUICK).wait_open(deadline=time.monotonic() + 5.0)
    release = threading.Event()

    def hang() -> ScriptedTracker:
        release.wait()
        return ScriptedTracker()

    guard = GuardedTracker("scripted", hang, QUICK)
    with pytest.raises(TimeoutError, match="did not open within 5 s"):
        guard.wait_open(deadline=time.monotonic() + 0.05)
    release.set()
