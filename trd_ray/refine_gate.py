"""The refinement gate: which refinements are trained on.

A gate refuses by design. What it refuses is counted by reason and kept; it says nothing about the health of
a run, unlike a refinement that is broken.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np

from trd_ray.choices import RefineGate
from trd_ray.config import RefineGateConfig
from trd_ray.errors import RunFailedError, describe
from trd_ray.extensions import load_attribute, refused
from trd_ray.interfaces import Generator
from trd_ray.outcomes import RejectReason
from trd_ray.types import Grade, IntArray, Rollout

REFUSED_BY_DESIGN = frozenset(
    {
        RejectReason.ROLLOUT_CORRECT,
        RejectReason.REFINEMENT_WRONG,
        RejectReason.REFINEMENT_WORSE,
        RejectReason.LOW_SUPPORT,
        RejectReason.GATE_FUNCTION,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """What would be trained on in place of a rollout."""

    rollout: Rollout
    """The student's answer, its problem (`rollout.prompt.problem`) and grade."""
    token_ids: IntArray
    """[T] of the rewrite, or of a rollout's good beginning and its new end. T at least 1."""
    text: str
    grade: Grade
    """Of `text`."""


async def refuse(candidate: Candidate, *, gate: RefineGateConfig, generator: Generator) -> RejectReason:
    """Why the gate refuses a refinement; `NONE` if it lets it through.

    `failed_only` needs no refinement to refuse one, so it is looked at before one is made.

    Args:
        generator: asked for student logprobs by the gate `min_support` alone.
    """
    rollout, grade = candidate.rollout, candidate.grade
    match gate.kind:
        case RefineGate.ACCEPT_CORRECT if not grade.correct:
            return RejectReason.REFINEMENT_WRONG
        case RefineGate.ACCEPT_NOT_WORSE if rollout.grade.correct and not grade.correct:
            return RejectReason.REFINEMENT_WORSE
        case RefineGate.MIN_SUPPORT:
            support = await _support(rollout, candidate.token_ids, generator)
            if math.isnan(support):
                return RejectReason.NON_FINITE
            return RejectReason.LOW_SUPPORT if support < -gate.min_support else RejectReason.NONE
        case RefineGate.CUSTOM:
            accepted = await asyncio.to_thread(_ask, gate.function, candidate)
            return RejectReason.NONE if accepted else RejectReason.GATE_FUNCTION
    return RejectReason.NONE


async def _support(rollout: Rollout, token_ids: IntArray, generator: Generator) -> float:
    """mean student_logprob(y_r) - mean student_logprob(y_o), in nats a token; 0 for an empty rollout."""
    if len(rollout.completion.logprobs) == 0:
        return 0.0
    logprobs = await generator.token_logprobs(rollout.prompt.token_ids, token_ids)
    return float(np.mean(logprobs) - np.mean(rollout.completion.logprobs))


def _ask(path: str, candidate: Candidate) -> bool:
    """Raises `RunFailedError` for an answer that is neither yes nor no, such as a coroutine."""
    accepted = gate_function(path)(candidate)
    if not isinstance(accepted, bool):
        raise RunFailedError(
            describe(
                "the refinement gate does not say yes or no",
                where=f"{path}, problem {candidate.rollout.prompt.problem.prompt_id!r}",
                got=repr(accepted),
                expected="True or False",
                remedy="return a bool",
            )
        )
    return accepted


@lru_cache(maxsize=8)
def gate_function(path: str) -> Callable[[Candidate], bool]:
    """The user's gate. Raises `ConfigError` if `path` names no function of one candidate."""
    key = "method.refine_gate.function"
    found = load_attribute(path, key=key)
    if not callable(found):
        raise refused(key, f"{path}: {found!r}", "a function of one Candidate", "name the function")
    try:
        inspect.signature(found).bind(None)
    except TypeError as error:
        raise refused(key, f"{path}: {error}", "a function of one Candidate", "mend its signature") from error
    return cast(Callable[[Candidate], bool], found)
