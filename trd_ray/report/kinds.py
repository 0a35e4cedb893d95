"""What became of a rollout: the classes that the report counts, colours and filters by."""

from __future__ import annotations

from enum import StrEnum

from trd_ray.outcomes import Outcome
from trd_ray.types import TrajectorySource

REWRITTEN = (TrajectorySource.REFINED, TrajectorySource.SPLICED)


class Kind(StrEnum):
    """Values are the words on the page."""

    WRONG_TO_RIGHT = "wrong to right"
    RIGHT_TO_WRONG = "right to wrong"
    BOTH_WRONG = "both wrong"
    BOTH_RIGHT = "both right"
    RIGHT = "right"
    """What is trained on is no rewrite of a rollout, and right."""
    WRONG = "wrong"
    REJECTED = "rejected"


def kind_of(
    *,
    outcome: Outcome,
    source: TrajectorySource,
    rollout_correct: bool | None,
    trajectory_correct: bool | None,
) -> Kind:
    if outcome is Outcome.REJECTED:
        return Kind.REJECTED
    if source not in REWRITTEN:
        return Kind.RIGHT if trajectory_correct else Kind.WRONG
    if trajectory_correct:
        return Kind.BOTH_RIGHT if rollout_correct else Kind.WRONG_TO_RIGHT
    return Kind.RIGHT_TO_WRONG if rollout_correct else Kind.BOTH_WRONG
