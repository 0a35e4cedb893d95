"""Trajectories for tests, made from a few words."""

from __future__ import annotations

import numpy as np

from tests.fakes import completion
from trd_ray.outcomes import RejectReason
from trd_ray.trajectories import make, of_rollout
from trd_ray.types import (
    Grade,
    IntArray,
    Problem,
    Prompt,
    Refinement,
    RefinePrompt,
    Rollout,
    TeacherContext,
    Trajectory,
    TrajectorySource,
)


def ints(*values: int) -> IntArray:
    return np.asarray(values, dtype=np.int32)


def rollout(text: str, *, correct: bool = False, prompt_id: str = "p", epoch: int = 0) -> Rollout:
    """An answer whose tokens are the characters of `text`, each with logprob -0.5."""
    problem = Problem(prompt_id=prompt_id, problem="1+1", answer="2")
    prompt = Prompt(problem=problem, epoch=epoch, sample_index=0, token_ids=ints(1), seed=3)
    wrong_at = None if correct else 0
    grade = Grade(correct=correct, answer=None, first_wrong_char=wrong_at)
    return Rollout(prompt=prompt, completion=completion(text), grade=grade)


def trajectory(*, correct: bool, text: str = "answer", prompt_id: str = "p", epoch: int = 0) -> Trajectory:
    """A rollout that is trained on."""
    return of_rollout(
        rollout(text, correct=correct, prompt_id=prompt_id, epoch=epoch),
        context=TeacherContext.PROMPT,
        context_ids=ints(1),
        reason=RejectReason.NONE,
    )


def refined(
    before: str,
    after: str,
    *,
    source: TrajectorySource = TrajectorySource.REFINED,
    num_kept: int = 0,
    gate_reason: RejectReason = RejectReason.NONE,
) -> Trajectory:
    """A rollout `before` and its refinement `after`; refused and rejected if there is a `gate_reason`."""
    y_o = rollout(before)
    prompt = RefinePrompt(token_ids=ints(2), num_cut_rollout_tokens=0, num_cut_reference_tokens=0)
    grade = Grade(correct=True, answer=None)
    return make(
        y_o.prompt,
        source=source,
        token_ids=completion(after).token_ids,
        text=after,
        grade=grade,
        context=TeacherContext.REFINE,
        context_ids=ints(2),
        reason=gate_reason,
        rollout=y_o,
        refinement=Refinement(prompt=prompt, completion=completion(after), grade=grade),
        gate_reason=gate_reason,
        num_kept=num_kept,
    )
