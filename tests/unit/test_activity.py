"""What actors did in a step, worked out by hand on a clock that the test moves."""

from __future__ import annotations

import random

import pytest

from tests.unit.hand_clock import HandClock
from trd_ray.activity import RoleActivity
from trd_ray.activity_records import RoleLap, Tally, WaitReason
from trd_ray.roles import Role
from trd_ray.stage_clock import Stage


@pytest.fixture
def hand() -> HandClock:
    return HandClock()


def activity_of(hand: HandClock, *, generators: int = 1, teachers: int = 1) -> RoleActivity:
    activity = RoleActivity(hand)
    for i in range(generators):
        activity.add(f"generator-{i}", Role.GENERATOR)
    for i in range(teachers):
        activity.add(f"teacher-{i}", Role.TEACHER)
    activity.add("learner", Role.LEARNER)
    return activity


def parts(role: RoleLap) -> tuple[float, float, float, float]:
    return role.busy_s, role.waiting_s, role.idle_s, role.down_s


def test_an_actor_is_busy_while_any_call_of_it_is_outstanding(hand):
    activity = activity_of(hand)
    teacher = activity.actor("teacher-0")
    refine, score = teacher.serving(Stage.REFINE), teacher.serving(Stage.SCORE)
    hand.at += 1.0
    refine.__enter__()
    hand.at += 2.0
    score.__enter__()
    score.__enter__()
    hand.at += 4.0
    refine.__exit__(None, None, None)
    score.__exit__(None, None, None)
    hand.at += 8.0
    assert activity.outstanding() == {"score": 1}
    score.__exit__(None, None, None)
    hand.at += 16.0
    lap = activity.lap(learner_step=1)
    assert lap.step_s == 31.0
    assert parts(lap.roles[Role.TEACHER]) == (14.0, 0.0, 17.0, 0.0)
    assert lap.roles[Role.TEACHER].busy_by_stage_s == {"refine": 6.0, "score": 12.0}
    assert lap.roles[Role.TEACHER].busy_share == 14.0 / 31.0
    assert parts(lap.roles[Role.GENERATOR]) == (0.0, 0.0, 31.0, 0.0)


def test_a_role_is_the_mean_of_its_actors(hand):
    activity = activity_of(hand, generators=4)
    with activity.serving("generator-0", Stage.ROLLOUT), activity.serving("generator-1", Stage.ROLLOUT):
        hand.at += 2.0
    with activity.serving("generator-1", Stage.ROLLOUT):
        hand.at += 4.0
    lap = activity.lap(learner_step=1)
    assert parts(lap.roles[Role.GENERATOR]) == (8.0 / 4, 0.0, 16.0 / 4, 0.0)


def test_what_is_held_waits_and_what_is_busy_meanwhile_is_busy(hand):
    activity = activity_of(hand, generators=2)
    with activity.holding(Role.GENERATOR, WaitReason.STALENESS):
        hand.at += 1.0  # two wait
        with activity.serving("generator-0", Stage.ROLLOUT):
            hand.at += 2.0  # one busy, one waits
        hand.at += 4.0  # two wait
        with activity.holding(Role.GENERATOR, WaitReason.PUSH):
            hand.at += 8.0  # two wait, once
    with activity.waiting("learner", WaitReason.STARVED):
        hand.at += 16.0
    lap = activity.lap(learner_step=1)
    assert parts(lap.roles[Role.GENERATOR]) == (1.0, (2 + 2 + 8 + 16) / 2, 16.0, 0.0)
    assert parts(lap.roles[Role.LEARNER]) == (0.0, 16.0, 15.0, 0.0)


def test_a_restart_is_down_time_whatever_was_outstanding(hand):
    activity = activity_of(hand, generators=2)
    with activity.serving("generator-1", Stage.ROLLOUT):
        hand.at += 1.0
        with activity.down("generator-1"):
            hand.at += 2.0
        hand.at += 4.0
    lap = activity.lap(learner_step=1)
    assert parts(lap.roles[Role.GENERATOR]) == (5.0 / 2, 0.0, 7.0 / 2, 2.0 / 2)
    assert lap.roles[Role.GENERATOR].num_restarts == 1
    assert activity.lap(learner_step=2).roles[Role.GENERATOR].num_restarts == 0


def test_what_outlives_a_step_is_split_between_both(hand):
    activity = activity_of(hand)
    with (
        activity.serving("learner", Stage.LEARN),
        activity.holding(Role.GENERATOR, WaitReason.STALENESS),
        activity.queue(Role.TEACHER),
    ):
        hand.at += 1.0
        first = activity.lap(learner_step=1)
        hand.at += 2.0
    hand.at += 1.0
    second = activity.lap(learner_step=2)
    assert [parts(lap.roles[Role.LEARNER])[0] for lap in (first, second)] == [1.0, 2.0]
    assert [parts(lap.roles[Role.GENERATOR])[1] for lap in (first, second)] == [1.0, 2.0]
    assert [lap.roles[Role.TEACHER].queue.mean for lap in (first, second)] == [1.0, 2.0 / 3.0]
    assert second.roles[Role.TEACHER].queue.max == 1


def test_start_forgets_what_lies_between_two_steps(hand):
    activity = activity_of(hand)
    with activity.serving("generator-0", Stage.ROLLOUT):
        activity.buffer.set(3)
        activity.buffer.set(1)
        activity.count(Tally.RETRY)
        hand.at += 64.0
        activity.start()
        hand.at += 1.0
    lap = activity.lap(learner_step=1)
    assert (lap.step_s, lap.roles[Role.GENERATOR].busy_s) == (1.0, 1.0)
    assert (lap.buffer.mean, lap.buffer.max, lap.counts[Tally.RETRY]) == (1.0, 1, 0)


def test_depths_are_weighted_by_time(hand):
    activity = activity_of(hand)
    with activity.queue(Role.GENERATOR):
        hand.at += 1.0
        activity.in_flight.set(10)
        hand.at += 1.0
        activity.in_flight.leave()
        activity.in_flight.set(4)
    hand.at += 2.0
    activity.count(Tally.STALE_DROPPED, 3)
    lap = activity.lap(learner_step=1)
    assert (lap.roles[Role.GENERATOR].queue.mean, lap.roles[Role.GENERATOR].queue.max) == (0.5, 1)
    assert (lap.in_flight.mean, lap.in_flight.max) == ((10 + 8) / 4, 10)
    assert lap.counts == {Tally.STALE_DROPPED: 3, Tally.REFRESHED: 0, Tally.RETRY: 0}
    with pytest.raises(ValueError, match="buffer depth: got -1"):
        activity.buffer.leave()


def test_a_call_that_raises_is_over(hand):
    activity = activity_of(hand)
    with pytest.raises(RuntimeError), activity.serving("generator-0", Stage.ROLLOUT):
        hand.at += 1.0
        raise RuntimeError
    hand.at += 1.0
    assert parts(activity.lap(learner_step=1).roles[Role.GENERATOR]) == (1.0, 0.0, 1.0, 0.0)


def test_a_whole_role_may_be_served_at_once(hand):
    activity = activity_of(hand, generators=3)
    with activity.serving_all(Role.GENERATOR, Stage.SYNC):
        hand.at += 1.0
    assert activity.lap(learner_step=1).roles[Role.GENERATOR].busy_s == 1.0


def test_unknown_and_repeated_names_are_refused(hand):
    activity = activity_of(hand)
    with pytest.raises(ValueError, match=r"no actor 'teacher-7'; expected one of \['generator-0'"):
        activity.serving("teacher-7", Stage.SCORE)
    with pytest.raises(ValueError, match="'learner' is watched already"):
        activity.add("learner", Role.LEARNER)


def test_parts_add_up_to_the_step_whatever_happens(hand):
    rng = random.Random(0)
    activity = activity_of(hand, generators=5)
    names = [f"generator-{i}" for i in range(5)]
    contexts = [
        lambda: activity.serving(rng.choice(names), rng.choice([Stage.ROLLOUT, Stage.SYNC])),
        lambda: activity.waiting(rng.choice(names), WaitReason.PUSH),
        lambda: activity.down(rng.choice(names)),
        lambda: activity.holding(Role.GENERATOR, rng.choice(list(WaitReason))),
    ]
    entered: list = []
    for step in range(1, 20):
        for _ in range(50):
            hand.at += rng.randrange(8) / 8
            if entered and rng.random() < 0.5:
                entered.pop(rng.randrange(len(entered))).__exit__(None, None, None)
            else:
                entered.append(rng.choice(contexts)())
                entered[-1].__enter__()
        lap = activity.lap(learner_step=step)
        assert sum(parts(lap.roles[Role.GENERATOR])) == pytest.approx(lap.step_s, abs=1e-9)
        assert min(parts(lap.roles[Role.GENERATOR])) >= 0.0


def test_parts_add_up_with_a_real_clock():
    activity = RoleActivity()
    activity.add("generator-0", Role.GENERATOR)
    for _ in range(1000):
        with activity.serving("generator-0", Stage.ROLLOUT):
            pass
    lap = activity.lap(learner_step=1)
    assert sum(parts(lap.roles[Role.GENERATOR])) == pytest.approx(lap.step_s, abs=1e-9)
    assert 0.0 < lap.roles[Role.GENERATOR].busy_s < lap.step_s
