"""What each vocabulary entry adds to a divergence, and its derivative: each formula exists here once.

q is the teacher's probability of an entry, p the student's, in nats throughout.

forward_kl: q (log q - log p)
reverse_kl: p (log p - log q)
jsd:        beta q (log q - log m) + (1 - beta) p (log p - log m),  m = beta q + (1 - beta) p
            (generalized Jensen-Shannon divergence, Agarwal et al. 2024, arXiv 2306.13649, equation 1)

The derivative is the one to log p, with q fixed: -q, p (log p - log q) + p and, since the terms with
d log m cancel, (1 - beta) p (log p - log m). 0 log 0 is 0 (Cover and Thomas, Elements of Information
Theory, equation 2.26), so an entry that both sides rule out adds nothing; an entry that only the
second distribution of a KL rules out makes it infinite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from trd_ray.losses.options import DivergenceOptions


def entry_terms(
    log_q: Tensor, log_p: Tensor, *, options: DivergenceOptions, spare: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Contribution of each entry, and its derivative to `log_p`. Clipped if the options say so.

    Args:
        log_q: any shape; overwritten.
        log_p: the same shape; kept.
        spare: room for intermediate values, in that shape; overwritten. The second one is needed for
            `jsd` only.
    """
    # A mask costs as much as all other arithmetic together, and logits made of finite numbers need none.
    masked = log_q.numel() > 0 and bool(torch.isinf(torch.minimum(log_q.amin(), log_p.amin())))
    if options.formula == "forward_kl":
        value, slope = _forward_kl(log_q, log_p, spare[0], masked=masked)
    elif options.formula == "reverse_kl":
        value, slope = _reverse_kl(log_q, log_p, spare[0], masked=masked)
    else:
        assert spare[1] is not None
        value, slope = _jsd(log_q, log_p, spare[0], spare[1], beta=options.beta, masked=masked)
    if options.clip == "entry":
        assert options.clip_max is not None
        slope.masked_fill_(value > options.clip_max, 0.0)
        value.clamp_(max=options.clip_max)
    return value, slope


def needs_second_spare(options: DivergenceOptions) -> bool:
    return options.formula == "jsd"


def _forward_kl(log_q: Tensor, log_p: Tensor, q: Tensor, *, masked: bool) -> tuple[Tensor, Tensor]:
    torch.exp(log_q, out=q)
    value = log_q.sub_(log_p).mul_(q)
    if masked:
        value.masked_fill_(q == 0, 0.0)
    return value, q.neg_()


def _reverse_kl(log_q: Tensor, log_p: Tensor, p: Tensor, *, masked: bool) -> tuple[Tensor, Tensor]:
    torch.exp(log_p, out=p)
    value = torch.sub(log_p, log_q, out=log_q).mul_(p)
    if masked:
        value.masked_fill_(p == 0, 0.0)
    return value, p.add_(value)


def _jsd(
    log_q: Tensor, log_p: Tensor, a: Tensor, b: Tensor, *, beta: float, masked: bool
) -> tuple[Tensor, Tensor]:
    torch.add(log_p, math.log1p(-beta), out=b)
    torch.add(log_q, math.log(beta), out=a)
    log_m = torch.logaddexp(a, b, out=a)
    log_p_over_m = torch.sub(log_p, log_m, out=b)
    log_q_over_m = torch.sub(log_q, log_m, out=a)
    q = log_q.exp_()
    of_teacher = log_q_over_m.mul_(q)
    if masked:
        of_teacher.masked_fill_(q == 0, 0.0)
    p = torch.exp(log_p, out=q)
    of_student = log_p_over_m.mul_(p)
    if masked:
        of_student.masked_fill_(p == 0, 0.0)
    slope = of_student.mul_(1.0 - beta)
    return of_teacher.mul_(beta).add_(slope), slope


class _Entries(torch.autograd.Function):
    """`entry_terms` for autograd, where the entries are few."""

    @staticmethod
    def forward(ctx: FunctionCtx, log_q: Tensor, log_p: Tensor, options: DivergenceOptions) -> Tensor:
        spare = (torch.empty_like(log_p), torch.empty_like(log_p) if needs_second_spare(options) else None)
        value, slope = entry_terms(log_q.clone(), log_p, options=options, spare=spare)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors  # type: ignore[attr-defined]
        # A token that a clip cuts off has gradient 0, also where its slope is infinite.
        return None, torch.where(gradient == 0, 0.0, gradient * slope), None


def differentiable_entries(log_q: Tensor, log_p: Tensor, options: DivergenceOptions) -> Tensor:
    """Contribution of each entry; the gradient reaches `log_p` only. Any one shape for all."""
    values: Tensor = _Entries.apply(log_q, log_p, options)  # type: ignore[no-untyped-call]
    return values
