"""What is wrong with an engine's answer, whatever the method makes of it.

An engine that answers so may be broken: the request is tried elsewhere. What is still wrong then is the
request's own fault, and the trajectory is rejected with the same reason.
"""

from __future__ import annotations

import numpy as np

from trd_ray.outcomes import RejectReason
from trd_ray.targets import is_sound
from trd_ray.types import Completion, FloatArray, Target, TeacherHidden, TopKTargets


def completion_fault(completion: Completion, *, max_tokens: int) -> RejectReason:
    """`OVER_LENGTH` for more than `max_tokens` tokens, `NON_FINITE` for log-probabilities that are none."""
    if len(completion.token_ids) > max_tokens:
        return RejectReason.OVER_LENGTH
    return logprobs_fault(completion.logprobs, num_tokens=len(completion.token_ids))


def logprobs_fault(logprobs: FloatArray, *, num_tokens: int) -> RejectReason:
    """`OVER_LENGTH` unless there is one a token, `NON_FINITE` if one is no number."""
    if len(logprobs) != num_tokens:
        return RejectReason.OVER_LENGTH
    return RejectReason.NONE if np.isfinite(logprobs).all() else RejectReason.NON_FINITE


def target_fault(target: Target, *, num_tokens: int) -> RejectReason:
    """`OVER_LENGTH` unless there is one position a token, `NON_FINITE` if a value is no number."""
    if isinstance(target, TeacherHidden | TopKTargets) and target.num_tokens != num_tokens:
        return RejectReason.OVER_LENGTH
    return RejectReason.NONE if is_sound(target) else RejectReason.NON_FINITE
