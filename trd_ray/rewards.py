"""Advantages of GRPO: how much better a rollout is than the others of its problem.

Reward 1 for a right rollout, 0 for a wrong one; within the group of one problem in one step

    A_i = (r_i - mean(r)) / std(r)

with the population standard deviation (Shao et al. 2024, arXiv 2402.03300, section 4.1.2, outcome
supervision). A group whose rewards are all the same teaches nothing: its advantages are 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from trd_ray.types import Trajectory


def group_advantages(trajectories: Sequence[Trajectory]) -> tuple[float, ...]:
    """The advantage of each trajectory among those of the same problem and epoch.

    Give the consumed ones of a step: a rejected rollout (aborted, not finite) says nothing about the
    problem, and is no part of its group.
    """
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, trajectory in enumerate(trajectories):
        groups[trajectory.prompt.problem.prompt_id, trajectory.prompt.epoch].append(index)
    advantages = [0.0] * len(trajectories)
    for members in groups.values():
        rewards = np.array([_reward(trajectories[index]) for index in members])
        spread = float(rewards.std())
        if spread > 0:
            for index, reward in zip(members, rewards, strict=True):
                advantages[index] = float((reward - rewards.mean()) / spread)
    return tuple(advantages)


def _reward(trajectory: Trajectory) -> float:
    return float(trajectory.grade is not None and trajectory.grade.correct)
