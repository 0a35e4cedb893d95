"""The refinement gate: which refinements are trained on.

A gate refuses by design. What it refuses is counted by reason and kept; it says nothing about the health of
a run, unlike a refinement that is broken.
"""

from __future__ import annotations

import math

import numpy as np

from trd_ray.choices import RefineGate
from trd_ray.config import RefineGateConfig
from trd_ray.interfaces import Generator
from trd_ray.outcomes import RejectReason
from trd_ray.types import Grade, IntArray, Rollout

REFUSED_BY_DESIGN = frozenset(
    {
        RejectReason.ROLLOUT_CORRECT,
        RejectReason.REFINEMENT_WRONG,
        RejectReason.REFINEMENT_WORSE,
        RejectReason.LOW_SUPPORT,
    }
)


async def refuse(
    rollout: Rollout, token_ids: IntArray, grade: Grade, *, gate: RefineGateConfig, generator: Generator
) -> RejectReason:
    """Why the gate refuses a refinement; `NONE` if it lets it through.

    `failed_only` needs no refinement to refuse one, so it is looked at before one is made.

    Args:
        token_ids: [T] the refinement, T at least 1.
        grade: of the refinement.
        generator: asked for student logprobs by the gate `min_support` alone.
    """
    match gate.kind:
        case RefineGate.ACCEPT_CORRECT if not grade.correct:
            return RejectReason.REFINEMENT_WRONG
        case RefineGate.ACCEPT_NOT_WORSE if rollout.grade.correct and not grade.correct:
            return RejectReason.REFINEMENT_WORSE
        case RefineGate.MIN_SUPPORT:
            support = await _support(rollout, token_ids, generator)
            if math.isnan(support):
                return RejectReason.NON_FINITE
            return RejectReason.LOW_SUPPORT if support < -gate.min_support else RejectReason.NONE
    return RejectReason.NONE


async def _support(rollout: Rollout, token_ids: IntArray, generator: Generator) -> float:
    """mean student_logprob(y_r) - mean student_logprob(y_o), in nats a token; 0 for an empty rollout."""
    if len(rollout.completion.logprobs) == 0:
        return 0.0
    logprobs = await generator.token_logprobs(rollout.prompt.token_ids, token_ids)
    return float(np.mean(logprobs) - np.mean(rollout.completion.logprobs))
