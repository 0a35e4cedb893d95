"""Figures about refinements and trajectories of one step, each a mean or a count over records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from trd_ray.types import Trajectory, TrajectorySource

_PARTLY_KEPT = (TrajectorySource.SPLICED, TrajectorySource.SPECULATIVE)


def mean_of(values: Sequence[float]) -> float | None:
    """Their mean; None if there is none."""
    return sum(values) / len(values) if values else None


def num_accepted(consumed: Sequence[Trajectory]) -> int:
    """Refinements that were trained on."""
    return sum(t.refinement is not None and t.source is not TrajectorySource.ROLLOUT for t in consumed)


def refused_by_reason(trajectories: Sequence[Trajectory]) -> Mapping[str, int]:
    """How many refinements were broken or refused, by reason; reasons that occurred only."""
    reasons = Counter(str(t.gate_reason) for t in trajectories if t.gate_reason)
    return dict(sorted(reasons.items()))


def edit_distance_mean(trajectories: Sequence[Trajectory]) -> float | None:
    """Mean token edits (insert, delete, replace) from y_o to y_r over the longer one's length, in [0, 1].

    Levenshtein 1966. y_r is what would be trained on: of a spliced trajectory with its kept beginning.
    """
    return mean_of(
        [
            Levenshtein.normalized_distance(before, after)
            for before, after in _pairs(trajectories)
            if before or after
        ]
    )


def length_ratio_mean(trajectories: Sequence[Trajectory]) -> float | None:
    """Mean of tokens of y_r over tokens of y_o, of rollouts that have any."""
    return mean_of([len(after) / len(before) for before, after in _pairs(trajectories) if before])


def _pairs(trajectories: Sequence[Trajectory]) -> list[tuple[list[int], list[int]]]:
    """Tokens of rollout and refinement, where both were made."""
    pairs = []
    for t in trajectories:
        if t.rollout is None or t.refinement is None:
            continue
        before = t.rollout.completion.token_ids.tolist()
        if t.source is TrajectorySource.SPLICED:
            after = t.token_ids.tolist()
        else:
            # Tokens are kept here only where a splice was refused and the rollout trained on instead.
            after = before[: t.num_kept] + t.refinement.completion.token_ids.tolist()
        pairs.append((before, after))
    return pairs


def num_generated_tokens(trajectories: Sequence[Trajectory]) -> int:
    """Tokens of both models that the step's trajectories cost; drafts that were dropped are not counted."""
    return sum(_num_generated(t) for t in trajectories)


def _num_generated(t: Trajectory) -> int:
    if t.source in (TrajectorySource.TEACHER, TrajectorySource.SPECULATIVE):
        return len(t.token_ids)
    num = 0 if t.rollout is None else len(t.rollout.completion.token_ids)
    return num + (0 if t.refinement is None else len(t.refinement.completion.token_ids))


def support_mean(consumed: Sequence[Trajectory], *, student_logprob_mean: float | None) -> float | None:
    """Mean student logprob of the trajectories less that of their rollouts, in nats a token.

    Args:
        student_logprob_mean: mean over `consumed` of the mean student logprob of their tokens.

    Returns:
        None if the student answered nothing, or a rollout is empty.
    """
    before = [
        float(np.mean(t.rollout.completion.logprobs))
        for t in consumed
        if t.rollout is not None and len(t.rollout.completion.logprobs)
    ]
    if student_logprob_mean is None or not before or len(before) < len(consumed):
        return None
    return student_logprob_mean - sum(before) / len(before)


def kept_share_mean(consumed: Sequence[Trajectory]) -> float | None:
    """Mean share of tokens that the student made, over spliced and speculative trajectories."""
    return mean_of(
        [t.num_kept / len(t.token_ids) for t in consumed if t.source in _PARTLY_KEPT and len(t.token_ids)]
    )
