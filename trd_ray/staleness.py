"""Staleness: computed here, once, when a trajectory is consumed."""

from __future__ import annotations

from collections.abc import Iterable

from trd_ray.choices import OverStale
from trd_ray.config import PipelineConfig
from trd_ray.types import Trajectory


def staleness(trajectory: Trajectory, *, learner_version: int) -> int:
    """Optimizer steps between the oldest weights that made a token of `trajectory` and the learner's.

    0 where the student made no token.
    """
    if trajectory.policy_version_min is None:
        return 0
    return learner_version - trajectory.policy_version_min


def check_staleness(
    trajectories: Iterable[Trajectory], *, learner_version: int, pipeline: PipelineConfig
) -> int:
    """Largest staleness of `trajectories` (0 for none).

    Raises `ValueError` if one is negative, or above `max_staleness` where that is not to be used: the
    program let through what it must not, which is no fault of the data.
    """
    largest = 0
    bounded = pipeline.max_staleness == 0 or pipeline.over_stale is not OverStale.USE
    for trajectory in trajectories:
        age = staleness(trajectory, learner_version=learner_version)
        if age < 0 or (bounded and age > pipeline.max_staleness):
            raise ValueError(
                f"trajectory of {trajectory.prompt.problem.prompt_id!r} has staleness {age} "
                f"(policy_version_min {trajectory.policy_version_min}, learner {learner_version}); "
                f"expected 0 .. {pipeline.max_staleness}"
            )
        largest = max(largest, age)
    return largest
