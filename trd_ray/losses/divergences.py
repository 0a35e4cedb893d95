"""Divergences between the next-token distributions of teacher and student, from logits.

Axis letters: N tokens, V vocabulary. q is the teacher's distribution, p the student's, both at
temperature 1. Values are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from trd_ray.losses.options import DivergenceOptions, ObjectiveOptions
from trd_ray.losses.rows import Buffers, teacher_from_logits, token_terms


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
    jsd:        beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p; beta 0 and 1 mean
                forward and reverse KL (arXiv 2306.13649, equation 1)

    support `full` sums over V; `top_k` over the teacher's k most likely entries, where `renormalize`
    says who is rescaled to sum to 1 over them (`teacher`, `both`, `none`) and tail `bucket` adds one
    entry that holds all other mass on either side (nothing needs rescaling then, so `renormalize` has
    no effect). clip `token` bounds each divergence by clip_max, `entry` each term of the sum, before
    it is summed, so that a clipped divergence may be negative.

    An entry that both sides rule out (a logit of -inf, such as a padded vocabulary entry) adds
    nothing. An entry that only the second distribution of a KL rules out makes it infinite.

    Computed in float32 (float64 for float64 logits) whatever the format of the logits. The gradient
    reaches the student only, once (there is no second derivative).

    Raises:
        ValueError: shapes differ or are not [N, V]; an option is unknown or contradicts another;
            support `sampled`, which needs tokens: use `chunked_objective` or `sampled_divergence`.
    """
    options = divergence_of_logits(
        DivergenceOptions(
            divergence=divergence,
            beta=beta,
            support=support,
            top_k=top_k,
            renormalize=renormalize,
            tail=tail,
            clip=clip,
            clip_max=clip_max,
        )
    )
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"token_divergence: student_logits has shape {tuple(student_logits.shape)}, teacher_logits has "
            f"shape {tuple(teacher_logits.shape)}; expected one and the same [N, V]"
        )
    values: Tensor = _Divergence.apply(student_logits, teacher_logits, options)  # type: ignore[no-untyped-call]
    return values


def divergence_of_logits(options: DivergenceOptions) -> ObjectiveOptions:
    """The options of a loss that looks at logits alone.

    Raises:
        ValueError: the loss looks at tokens.
    """
    if options.support == "sampled" or not options.compares:
        name, got = ("support", "sampled") if options.compares else ("divergence", options.divergence)
        raise ValueError(
            f"{name}: got {got!r}, which looks at tokens; use chunked_objective, which is given them"
        )
    return ObjectiveOptions(divergence=options)


class _Divergence(torch.autograd.Function):
    """Keeps one `[N, V]`: the gradient of each value, which the backward pass only scales."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, student_logits: Tensor, teacher_logits: Tensor, options: ObjectiveOptions
    ) -> Tensor:
        dtype = torch.promote_types(
            torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32
        )
        rows, vocab = student_logits.shape
        buffers = Buffers(rows=rows, vocab=vocab, dtype=dtype, device=student_logits.device)
        teacher = teacher_from_logits(
            teacher_logits.to(dtype, copy=True), None, options=options, buffers=buffers
        )
        needs_gradient = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        terms = token_terms(
            student_logits.to(dtype, copy=True),
            teacher,
            None,
            buffers.get("work", rows).new_ones(rows) if needs_gradient else None,
            options=options,
            buffers=buffers,
        )
        if terms.gradient is not None:
            ctx.save_for_backward(terms.gradient)
        ctx.dtype = student_logits.dtype  # type: ignore[attr-defined]
        return terms.values

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (unit,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return (unit * gradient[:, None]).to(ctx.dtype), None, None  # type: ignore[attr-defined]
