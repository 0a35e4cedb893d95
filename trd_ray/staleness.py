"""Staleness: computed here, once, when a trajectory is consumed."""

from __future__ import annotations

from collections.abc import Iterable

from trd_ray.types import Rollout


def staleness(rollout: Rollout, *, learner_version: int) -> int:
    """Optimizer steps between the oldest weights that made a token of `rollout` and the learner's."""
    return learner_version - rollout.completion.policy_version_min


def check_staleness(rollouts: Iterable[Rollout], *, learner_version: int, max_staleness: int) -> int:
    """Largest staleness of `rollouts` (0 for none).

    Raises `ValueError` if one is above `max_staleness` or negative: the pipeline let through what
    it must not, which is a fault of the program and not of the data.
    """
    largest = 0
    for rollout in rollouts:
        age = staleness(rollout, learner_version=learner_version)
        if not 0 <= age <= max_staleness:
            raise ValueError(
                f"rollout of {rollout.prompt.problem.prompt_id!r} has staleness {age} (policy_version_min "
                f"{rollout.completion.policy_version_min}, learner {learner_version}); "
                f"expected 0 .. {max_staleness}"
            )
        largest = max(largest, age)
    return largest
