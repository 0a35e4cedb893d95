"""Divergences between the next-token distributions of teacher and student, from logits.

Axis letters: N tokens, V vocabulary. q is the teacher's distribution, p the student's, both at
temperature 1. Values are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trd_ray.losses.options import DivergenceOptions


def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    support: str = "full",
    top_k: int | None = None,
    renormalize: str = "teacher",
    tail: str = "drop",
    clip: str | None = None,
    clip_max: float | None = None,
) -> Tensor:
    """Divergence of each token, `[N, V]` and `[N, V]` -> `[N]`.

    forward_kl: KL(q || p) = sum_v q_v (log q_v - log p_v)
    reverse_kl: KL(p || q) = sum_v p_v (log p_v - log q_v)

    with 0 log 0 = 0 (Cover and Thomas, Elements of Information Theory, equation 2.26): an entry
    that both sides rule out (a logit of -inf, such as a padded vocabulary entry) adds nothing. An
    entry that only the second distribution rules out makes the divergence infinite, as it should.

    Computed in float32 (float64 for float64 logits) whatever the format of the logits. The
    gradient reaches the student only.

    Raises:
        ValueError: shapes differ or are not [N, V]; an option is unknown or not offered yet.
    """
    options = DivergenceOptions(
        divergence=divergence,
        beta=beta,
        support=support,
        top_k=top_k,
        renormalize=renormalize,
        tail=tail,
        clip=clip,
        clip_max=clip_max,
    )
    return divergence_from_logits(student_logits, teacher_logits, options=options)


def divergence_from_logits(
    student_logits: Tensor, teacher_logits: Tensor, *, options: DivergenceOptions
) -> Tensor:
    """`token_divergence` with its options already checked. `[N, V]` and `[N, V]` -> `[N]`.

    Raises:
        ValueError: shapes differ or are not [N, V].
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"token_divergence: student_logits has shape {tuple(student_logits.shape)}, teacher_logits has "
            f"shape {tuple(teacher_logits.shape)}; expected one and the same [N, V]"
        )
    student_NV = _log_softmax(student_logits)
    teacher_NV = _log_softmax(teacher_logits.detach())
    if options.divergence == "forward_kl":
        return _kl(teacher_NV, student_NV)
    return _kl(student_NV, teacher_NV)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _kl(log_a_NV: Tensor, log_b_NV: Tensor) -> Tensor:
    """KL(a || b) of each row, from log-probabilities. `[N, V]` and `[N, V]` -> `[N]`."""
    a_NV = log_a_NV.exp()
    present = a_NV > 0
    # Both operands are masked, not the product: the gradient of 0 * (-inf) would be NaN.
    log_ratio_NV = torch.where(present, log_a_NV, 0) - torch.where(present, log_b_NV, 0)
    return (a_NV * log_ratio_NV).sum(dim=-1)
