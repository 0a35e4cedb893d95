"""What a teacher computed, looked at: can it be learnt from, and what does it say of a draft."""

from __future__ import annotations

import dataclasses

import numpy as np

from trd_ray.types import DeferredTarget, IntArray, Target, TeacherHidden, TopKTargets

_BFLOAT16_EXPONENT = np.uint16(0x7F80)
"""All its bits are set in infinities and in what is no number."""


def is_sound(target: Target) -> bool:
    """No entry of it would poison the whole step's loss.

    A top-k entry of -inf is a probability of 0 and sound; a trajectory's own token must have one.
    """
    if isinstance(target, DeferredTarget):
        return True
    if isinstance(target, TeacherHidden):
        if target.hidden.dtype == np.uint16:
            exponents = target.hidden.view(np.uint16) & _BFLOAT16_EXPONENT
            return not bool((exponents == _BFLOAT16_EXPONENT).any())
        return bool(np.isfinite(target.hidden.view(np.float32)).all())
    entries = target.topk_logprobs
    has_poison = bool((np.isnan(entries) | np.isposinf(entries)).any())
    return bool(np.isfinite(target.token_logprobs).all()) and not has_poison


def with_known_ids(targets: TopKTargets, *, vocab_size: int) -> TopKTargets:
    """Give the probability of ids that no tokenizer has to tokens that a position does not list.

    A model's padding rows are hardly ever among its most likely; where one is, its small probability
    moves to the first id that is free, so that every id is one of the `vocab_size` and none stands twice.
    """
    unknown = targets.topk_ids >= vocab_size
    if not unknown.any():
        return targets
    ids = np.array(targets.topk_ids)
    for row in np.flatnonzero(unknown.any(axis=1)):
        free = np.setdiff1d(np.arange(min(vocab_size, 2 * ids.shape[1])), ids[row])
        ids[row, unknown[row]] = free[: int(unknown[row].sum())]
    return dataclasses.replace(targets, topk_ids=ids)


def first_outside(targets: TopKTargets, token_ids: IntArray) -> int:
    """How many of the first tokens [T] all lie among their positions' K most likely ones."""
    inside = (targets.topk_ids == token_ids[:, None]).any(axis=1)
    return len(token_ids) if inside.all() else int(inside.argmin())
