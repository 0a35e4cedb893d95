"""When a step is whole, and what becomes of what came too late."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.trajectory_records import trajectory
from trd_ray.choices import OverStale
from trd_ray.collector import StepCollector
from trd_ray.outcomes import Outcome, RejectReason


def made(problem: str, sample: int = 0, *, version: int = 0):
    one = trajectory(correct=True)
    prompt = dataclasses.replace(
        one.prompt, problem=dataclasses.replace(one.prompt.problem, prompt_id=problem), sample_index=sample
    )
    return dataclasses.replace(one, prompt=prompt, policy_version_min=version, policy_version_max=version)


def collector(over_stale: OverStale = OverStale.DROP, *, unit_size: int = 1, units: int = 2, most: int = 1):
    return StepCollector(units_per_step=units, unit_size=unit_size, max_staleness=most, over_stale=over_stale)


def names(trajectories) -> list[str]:
    return [t.prompt.problem.prompt_id for t in trajectories]


def test_the_first_to_arrive_make_the_step_and_the_rest_waits():
    held = collector()
    held.add([made("a")])
    assert held.collect(learner_version=0).trajectories == ()
    held.add([made("b"), made("c")])
    assert names(held.collect(learner_version=0).trajectories) == ["a", "b"]
    assert names(held.held) == ["c"]


def test_over_stale_ones_are_dropped_with_their_reason_and_do_not_fill_the_step():
    held = collector()
    held.add([made("old"), made("a", version=1)])
    got = held.collect(learner_version=2)
    assert got.trajectories == ()
    assert [(t.outcome, t.reason) for t in got.dropped] == [(Outcome.REJECTED, RejectReason.STALE)]
    held.add([made("b", version=2)])
    assert names(held.collect(learner_version=2).trajectories) == ["a", "b"]


def test_over_stale_ones_are_used_where_that_is_the_policy():
    held = collector(OverStale.USE)
    held.add([made("old"), made("a", version=5)])
    assert names(held.collect(learner_version=5).trajectories) == ["old", "a"]


def test_over_stale_prompts_are_given_back_to_be_made_anew():
    held = collector(OverStale.REFRESH)
    held.add([made("old"), made("a", version=5)])
    got = held.collect(learner_version=5)
    assert [p.problem.prompt_id for p in got.refreshed] == ["old"]
    assert (got.dropped, names(held.held)) == ((), ["a"])


def test_staleness_of_exactly_the_bound_is_fresh():
    held = collector(units=1)
    held.add([made("a", version=1)])
    assert names(held.collect(learner_version=2).trajectories) == ["a"]


def test_what_is_next_to_be_too_old_is_learnt_from_first():
    held = collector()
    held.add([made("a", version=3), made("b", version=2), made("c", version=3), made("d", version=2)])
    assert names(held.collect(learner_version=3).trajectories) == ["b", "d"]
    assert names(held.held) == ["a", "c"]


def test_rollouts_that_are_compared_come_together_whatever_their_order():
    held = collector(unit_size=2, units=1)
    held.add([made("a", 0), made("b", 0), made("b", 1)])
    assert names(held.collect(learner_version=0).trajectories) == ["b", "b"]
    held.add([made("a", 1)])
    assert names(held.collect(learner_version=0).trajectories) == ["a", "a"]


def test_a_group_with_one_over_stale_rollout_is_dropped_whole():
    held = collector(unit_size=2, units=1)
    held.add([made("a", 0), made("a", 1, version=2)])
    got = held.collect(learner_version=2)
    assert names(got.dropped) == ["a", "a"]


@pytest.mark.parametrize("policy", list(OverStale))
def test_without_staleness_nothing_is_dropped_since_it_would_be_a_fault(policy: OverStale):
    held = collector(policy, units=1, most=0)
    held.add([made("a")])
    assert names(held.collect(learner_version=1).trajectories) == ["a"]


def test_what_was_fresh_and_held_is_dropped_when_a_later_version_makes_it_too_old():
    held = collector()
    held.add([made("a"), made("b"), made("c")])
    assert names(held.collect(learner_version=1).trajectories) == ["a", "b"]
    held.add([made("d", version=2)])
    got = held.collect(learner_version=2)
    assert (names(got.dropped), names(held.held)) == (["c"], ["d"])


def test_the_work_of_an_arrival_does_not_grow_with_what_is_held(monkeypatch: pytest.MonkeyPatch):
    looks = 0

    def counting(trajectory, *, learner_version):
        nonlocal looks
        looks += 1
        return learner_version - trajectory.policy_version_min

    monkeypatch.setattr("trd_ray.collector.staleness", counting)
    held = collector(units=200)
    for i in range(200):
        held.add([made(str(i))])
        got = held.collect(learner_version=0)
    assert len(got.trajectories) == 200
    assert looks == 2 * 200, "once at its arrival and once for the step"
