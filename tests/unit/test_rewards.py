"""Advantages of GRPO by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.trajectory_records import trajectory
from trd_ray.rewards import group_advantages


def test_advantages_are_rewards_less_their_mean_over_their_deviation():
    # Rewards 1 0 0 0: mean 1/4, population deviation sqrt((9 + 1 + 1 + 1) / 16 / 4) = sqrt(3)/4.
    # Right: (3/4) / (sqrt(3)/4) = sqrt(3); wrong: -(1/4) / (sqrt(3)/4) = -1/sqrt(3).
    group = [trajectory(correct=i == 0, prompt_id="a") for i in range(4)]
    assert group_advantages(group) == pytest.approx([3**0.5] + [-(3**-0.5)] * 3)


def test_the_sample_deviation_would_give_other_numbers():
    group = [trajectory(correct=i == 0, prompt_id="a") for i in range(4)]
    sample_deviation = np.std([1, 0, 0, 0], ddof=1)
    assert group_advantages(group)[0] != pytest.approx(0.75 / sample_deviation)


def test_groups_are_problems_and_epochs_whatever_their_order():
    one, other = trajectory(correct=True, prompt_id="a"), trajectory(correct=False, prompt_id="a")
    again = trajectory(correct=False, prompt_id="a", epoch=1)
    alone = trajectory(correct=True, prompt_id="b")
    assert group_advantages([one, alone, other, again]) == pytest.approx([1.0, 0.0, -1.0, 0.0])


def test_a_group_that_is_all_right_or_all_wrong_teaches_nothing():
    assert group_advantages([trajectory(correct=True, prompt_id="a")] * 3) == (0.0, 0.0, 0.0)
    assert group_advantages([trajectory(correct=False, prompt_id="a")] * 2) == (0.0, 0.0)
    assert group_advantages([]) == ()
