"""Trajectories as records: one maker for each source, no decision and no waiting."""

from __future__ import annotations

import dataclasses

import numpy as np

from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.refinement import PromptTooLong
from trd_ray.types import (
    Completion,
    Grade,
    IntArray,
    Prompt,
    Refinement,
    Rollout,
    Target,
    TeacherContext,
    Trajectory,
    TrajectorySource,
)

NO_TOKENS: IntArray = np.zeros(0, dtype=np.int32)


def of_rollout(
    rollout: Rollout,
    *,
    context: TeacherContext,
    context_ids: IntArray | PromptTooLong,
    reason: RejectReason,
    refinement: Refinement | None = None,
    gate_reason: RejectReason = RejectReason.NONE,
    num_kept: int = 0,
) -> Trajectory:
    """The rollout itself, also where a refinement was refused.

    Args:
        num_kept: first tokens of it that a refused splice had kept.
    """
    return make(
        rollout.prompt,
        source=TrajectorySource.ROLLOUT,
        token_ids=rollout.completion.token_ids,
        text=rollout.completion.text,
        grade=rollout.grade,
        rollout=rollout,
        refinement=refinement,
        context=context,
        context_ids=context_ids,
        reason=reason,
        gate_reason=gate_reason,
        num_kept=num_kept,
    )


def make(
    prompt: Prompt,
    *,
    source: TrajectorySource,
    token_ids: IntArray,
    text: str,
    grade: Grade | None,
    context: TeacherContext,
    context_ids: IntArray | PromptTooLong,
    reason: RejectReason = RejectReason.NONE,
    rollout: Rollout | None = None,
    refinement: Refinement | None = None,
    gate_reason: RejectReason = RejectReason.NONE,
    num_kept: int = 0,
    versions: tuple[int, int] | None = None,
    target: Target | None = None,
) -> Trajectory:
    """Any trajectory; a context that does not fit rejects it, unless it is rejected already.

    Args:
        versions: oldest and newest student weights that made a token; None takes them from `rollout`.
    """
    if isinstance(context_ids, PromptTooLong):
        reason = RejectReason.PROMPT_TOO_LONG if reason is RejectReason.NONE else reason
        context_ids = prompt.token_ids
    if versions is None and rollout is not None:
        versions = _versions(rollout.completion)
    return Trajectory(
        prompt=prompt,
        rollout=rollout,
        refinement=refinement,
        source=source,
        token_ids=token_ids,
        text=text,
        grade=grade,
        policy_version_min=None if versions is None else versions[0],
        policy_version_max=None if versions is None else versions[1],
        num_kept=num_kept,
        teacher_context=context,
        teacher_context_ids=context_ids,
        outcome=Outcome.CONSUMED if reason is RejectReason.NONE else Outcome.REJECTED,
        reason=reason,
        gate_reason=gate_reason,
        target=target if reason is RejectReason.NONE else None,
    )


def never_made(
    prompt: Prompt,
    *,
    source: TrajectorySource,
    context: TeacherContext,
    reason: RejectReason,
    rollout: Rollout | None = None,
    gate_reason: RejectReason = RejectReason.NONE,
) -> Trajectory:
    """A trajectory that is rejected before it has a token."""
    return make(
        prompt,
        source=source,
        token_ids=NO_TOKENS,
        text="",
        grade=None,
        context=context,
        context_ids=prompt.token_ids,
        reason=reason,
        rollout=rollout,
        gate_reason=gate_reason,
    )


def rejected(trajectory: Trajectory, reason: RejectReason) -> Trajectory:
    """The same trajectory, found unfit after it was made."""
    if trajectory.outcome is Outcome.REJECTED:
        return trajectory
    return dataclasses.replace(trajectory, outcome=Outcome.REJECTED, reason=reason, target=None)


def _versions(completion: Completion) -> tuple[int, int]:
    return completion.policy_version_min, completion.policy_version_max
