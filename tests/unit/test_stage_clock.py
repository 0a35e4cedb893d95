"""Shares of a step's time, worked out by hand on a clock that the test moves."""

from __future__ import annotations

import math

import pytest

from tests.unit.hand_clock import HandClock
from trd_ray.stage_clock import Stage, StageClock


@pytest.fixture
def hand() -> HandClock:
    return HandClock()


def parts(times) -> float:
    return math.fsum(times.shares.values()) + times.other_s


def test_with_a_barrier_a_share_is_the_plain_duration(hand):
    clock = StageClock(hand)
    hand.at += 0.5
    with clock.stage(Stage.ROLLOUT), clock.stage(Stage.ROLLOUT):
        hand.at += 4.0
    with clock.stage(Stage.LEARN):
        hand.at += 2.0
    hand.at += 0.25
    times = clock.lap()
    assert times.share_s(Stage.ROLLOUT) == 4.0
    assert times.share_s(Stage.LEARN) == 2.0
    assert times.share_s(Stage.REFINE) == 0.0
    assert times.other_s == 0.75
    assert times.step_s == 6.75 == parts(times)


def test_overlapping_stages_share_an_instant_by_their_samples(hand):
    clock = StageClock(hand)
    first, second, third = (clock.stage(Stage.ROLLOUT) for _ in range(3))
    refine = clock.stage(Stage.REFINE)
    for entry in (first, second, third):
        entry.__enter__()
    hand.at += 1.0  # three rollouts: rollout 1
    refine.__enter__()
    hand.at += 4.0  # three rollouts, one refinement: rollout 3, refine 1
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    hand.at += 2.0  # one of each: 1 and 1
    third.__exit__(None, None, None)
    hand.at += 0.5  # one refinement: refine 0.5
    refine.__exit__(None, None, None)
    times = clock.lap()
    assert times.share_s(Stage.ROLLOUT) == 5.0
    assert times.share_s(Stage.REFINE) == 2.5
    assert times.other_s == 0.0
    assert times.step_s == 7.5 == parts(times)
    # Spans overlap and so do not add up to the step: 7.0 + 6.5.
    assert times.span_s(Stage.ROLLOUT) == 7.0
    assert (times.spans[Stage.REFINE].start_s, times.spans[Stage.REFINE].end_s) == (1.0, 7.5)
    assert times.span_s(Stage.SYNC) == 0.0


def test_a_batch_weighs_as_many_samples_as_it_has(hand):
    clock = StageClock(hand)
    with clock.stage(Stage.LEARN, num_samples=3), clock.stage(Stage.ROLLOUT):
        hand.at += 8.0
    times = clock.lap()
    assert (times.share_s(Stage.LEARN), times.share_s(Stage.ROLLOUT)) == (6.0, 2.0)
    with pytest.raises(ValueError, match="num_samples is 0"), clock.stage(Stage.LEARN, num_samples=0):
        pass


def test_a_sample_that_outlives_a_step_is_split_between_both(hand):
    clock = StageClock(hand)
    with clock.stage(Stage.ROLLOUT):
        hand.at += 1.0
        first = clock.lap()
        hand.at += 2.0
    hand.at += 1.0
    second = clock.lap()
    assert (first.share_s(Stage.ROLLOUT), first.step_s) == (1.0, 1.0)
    assert first.span_s(Stage.ROLLOUT) == 1.0
    assert (second.share_s(Stage.ROLLOUT), second.other_s, second.step_s) == (2.0, 1.0, 3.0)
    assert (second.spans[Stage.ROLLOUT].start_s, second.spans[Stage.ROLLOUT].end_s) == (0.0, 2.0)


def test_start_forgets_what_lies_between_two_steps(hand):
    clock = StageClock(hand)
    hand.at += 50.0  # an evaluation
    clock.start()
    with clock.stage(Stage.SYNC):
        hand.at += 1.0
    times = clock.lap()
    assert (times.step_s, times.other_s) == (1.0, 0.0)


def test_a_stage_that_raises_is_left(hand):
    clock = StageClock(hand)
    with pytest.raises(RuntimeError), clock.stage(Stage.SCORE):
        hand.at += 1.0
        raise RuntimeError
    hand.at += 1.0
    times = clock.lap()
    assert (times.share_s(Stage.SCORE), times.other_s) == (1.0, 1.0)


def test_parts_add_up_with_a_real_clock():
    clock = StageClock()
    for stage in Stage:
        with clock.stage(stage), clock.stage(Stage.ROLLOUT):
            sum(range(1000))
    times = clock.lap()
    assert parts(times) == pytest.approx(times.step_s, abs=1e-12)
    assert times.other_s >= 0.0
