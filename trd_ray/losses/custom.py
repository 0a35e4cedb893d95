"""A divergence of the user's own: any function of a token's two distributions that autograd can follow."""

from __future__ import annotations

import torch
from torch import Tensor

from trd_ray.losses.options import DivergenceFunction


def custom_terms(log_q: Tensor, log_p: Tensor, function: DivergenceFunction) -> tuple[Tensor, Tensor]:
    """Values [N], and their derivative to the student's log-probabilities [N, V].

    Args:
        log_q: [N, V] of the teacher; may be overwritten.
        log_p: [N, V] of the student; kept.

    Raises:
        ValueError: the function returns something else than [N].
    """
    with torch.enable_grad():
        student = log_p.detach().requires_grad_()
        values = custom_values(log_q, student, function)
        (slope,) = torch.autograd.grad(values.sum(), student)
    # Of a plain sum it is one number in all places, which no one could write to.
    return values.detach(), slope.contiguous()


def custom_values(log_q: Tensor, log_p: Tensor, function: DivergenceFunction) -> Tensor:
    """`[N, K]`, `[N, K]` -> `[N]`. Raises ValueError if the function returns another shape."""
    values = function(log_q, log_p)
    if values.shape != log_p.shape[:1]:
        raise ValueError(
            f"the divergence returns shape {tuple(values.shape)} for {tuple(log_p.shape)}; expected "
            f"{tuple(log_p.shape[:1])}"
        )
    return values
