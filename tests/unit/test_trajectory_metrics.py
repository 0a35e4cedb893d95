"""Figures about refinements by hand. Tokens are characters."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.trajectory_records import refined, trajectory
from trd_ray.outcomes import RejectReason
from trd_ray.trajectory_metrics import (
    edit_distance_mean,
    kept_share_mean,
    length_ratio_mean,
    num_accepted,
    num_generated_tokens,
    refused_by_reason,
    support_mean,
)
from trd_ray.types import TrajectorySource


def test_edit_distance_is_of_tokens_over_the_longer_length():
    # kitten -> sitting: 3 edits over 7 tokens. abcd -> abcd: 0. A rollout alone is no pair.
    pairs = [refined("kitten", "sitting"), refined("abcd", "abcd"), trajectory(correct=True)]
    assert edit_distance_mean(pairs) == pytest.approx((3 / 7 + 0) / 2)
    assert edit_distance_mean([trajectory(correct=True)]) is None


def test_length_ratio_is_refinement_over_rollout():
    assert length_ratio_mean([refined("ab", "abcd"), refined("abcd", "a")]) == pytest.approx((2 + 0.25) / 2)
    assert length_ratio_mean([refined("", "abcd")]) is None


def test_support_is_the_change_of_the_mean_student_logprob():
    # Rollouts have logprob -0.5 a token; the trajectories that came of them -0.8.
    assert support_mean([refined("ab", "c")], student_logprob_mean=-0.8) == pytest.approx(-0.3)
    assert support_mean([refined("ab", "c")], student_logprob_mean=None) is None
    assert support_mean([refined("", "c")], student_logprob_mean=-0.8) is None
    assert support_mean([], student_logprob_mean=None) is None


def test_kept_share_is_of_spliced_and_speculative_trajectories_alone():
    spliced = refined("abx", "abcd", source=TrajectorySource.SPLICED, num_kept=2)
    assert kept_share_mean([spliced, refined("a", "b", num_kept=0)]) == pytest.approx(0.5)
    assert kept_share_mean([refined("a", "b")]) is None


def test_refused_refinements_are_counted_by_reason():
    refused = refined("a", "b", gate_reason=RejectReason.LOW_SUPPORT)
    assert refused_by_reason([refused, refused, refined("a", "b")]) == {"low_support": 2}
    assert num_accepted([refined("a", "b"), trajectory(correct=True)]) == 1


def test_a_refused_splice_is_compared_as_it_would_have_been_trained_on():
    # abXX -> ab + cd: 2 edits over 4 tokens; the teacher wrote "cd" alone.
    refused = refined(
        "abXX", "cd", source=TrajectorySource.ROLLOUT, num_kept=2, gate_reason=RejectReason.LOW_SUPPORT
    )
    assert edit_distance_mean([refused]) == pytest.approx(2 / 4)
    assert length_ratio_mean([refused]) == 1.0


def test_generated_tokens_are_those_of_both_models_and_of_no_file():
    written = [refined("abcd", "ab"), trajectory(correct=True, text="abc")]
    assert num_generated_tokens(written) == 4 + 2 + 3
    for source, num in (
        (TrajectorySource.TEACHER, 3),
        (TrajectorySource.SPECULATIVE, 3),
        (TrajectorySource.REFERENCE, 0),
    ):
        alone = dataclasses.replace(trajectory(correct=True, text="abc"), rollout=None, source=source)
        assert num_generated_tokens([alone]) == num
