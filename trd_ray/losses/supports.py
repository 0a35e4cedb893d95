"""Divergence over the teacher's k most likely entries, with or without a bucket for the rest.

Axis letters: N tokens, V vocabulary, K entries of the support.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trd_ray.losses.custom import custom_values
from trd_ray.losses.entries import differentiable_entries
from trd_ray.losses.options import DivergenceOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class TopK:
    """The teacher's most likely entries at each token."""

    ids: Tensor
    """[N, K] int64."""
    logprobs: Tensor
    """[N, K] of the whole vocabulary's distribution."""
    tail: Tensor | None
    """[N] log of the probability of all other entries; None if they are left out or there are none."""


def top_k_of(logprobs_NV: Tensor, *, k: int, tail: bool, spare: Tensor) -> TopK:
    """The k most likely entries of each row (all if there are fewer). `spare` [N, V] is overwritten."""
    k = min(k, logprobs_NV.shape[1])
    logprobs, ids = torch.topk(logprobs_NV, k, dim=-1)
    return TopK(
        ids=ids,
        logprobs=logprobs,
        tail=rest_logprob(logprobs_NV, ids, spare) if tail and k < logprobs_NV.shape[1] else None,
    )


def top_k_given(ids: Tensor, logprobs: Tensor, *, k: int, tail: bool, vocab_size: int) -> TopK:
    """The first k of entries that come most likely first, `[N, K]`, K at least min(k, V).

    The tail is known as 1 minus a sum of rounded numbers only, so it is taken to be at least one
    unit of that rounding: its logarithm stays finite.

    Raises:
        ValueError: fewer than k entries.
    """
    k = min(k, vocab_size)
    if ids.shape[1] < k:
        raise ValueError(f"top_k: got {ids.shape[1]} entries a token; expected {k} or more")
    ids, logprobs = ids[:, :k], logprobs[:, :k]
    if not tail or k == vocab_size:
        return TopK(ids=ids, logprobs=logprobs, tail=None)
    least = torch.finfo(torch.float32).eps
    kept = torch.logsumexp(logprobs, dim=-1)
    return TopK(ids=ids, logprobs=logprobs, tail=(-torch.expm1(kept)).clamp_min(least).log())


def rest_logprob(logprobs_NV: Tensor, ids: Tensor, spare: Tensor) -> Tensor:
    """[N] log of the probability outside `ids`, summed there: 1 minus the rest would lose all digits."""
    spare.copy_(logprobs_NV).scatter_(1, ids, -torch.inf)
    top = spare.amax(dim=-1, keepdim=True)
    top = torch.where(torch.isinf(top), 0.0, top)
    return spare.sub_(top).exp_().sum(dim=-1).log_() + top[:, 0]


def top_k_divergence(
    teacher: TopK, student_logprobs: Tensor, student_tail: Tensor | None, options: DivergenceOptions
) -> Tensor:
    """Sum of the entries' contributions, `[N, K]` (and `[N]`) -> `[N]`.

    With S the support, over v in S: log q_v and log p_v as they are (`none`), minus log sum_S q for the
    teacher (`teacher`), and minus log sum_S p for the student too (`both`). With a bucket, one more
    entry holds what S leaves out on either side; both then sum to 1 and nothing is rescaled.
    """
    log_q, log_p = teacher.logprobs, student_logprobs
    if options.tail == "bucket":
        if teacher.tail is not None and student_tail is not None:
            log_q = torch.cat([log_q, teacher.tail[:, None]], dim=-1)
            log_p = torch.cat([log_p, student_tail[:, None]], dim=-1)
    elif options.renormalize != "none":
        log_q = log_q - torch.logsumexp(log_q, dim=-1, keepdim=True)
        if options.renormalize == "both":
            log_p = log_p - torch.logsumexp(log_p, dim=-1, keepdim=True)
    if options.function is not None:
        return custom_values(log_q, log_p, options.function)
    return differentiable_entries(log_q, log_p, options).sum(dim=-1)
