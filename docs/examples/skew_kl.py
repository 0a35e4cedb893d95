"""A divergence: KL(teacher || m) with m = a teacher + (1 - a) student, which no zero of the student's
makes infinite (skew KL divergence, Ko et al. 2024, arXiv 2402.03898)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEACHER_SHARE = 0.1


def skew_kl(teacher_logprobs: Tensor, student_logprobs: Tensor) -> Tensor:
    """[N, V] and [N, V] -> [N]. Autograd makes the gradient to the student."""
    mixed = torch.logaddexp(
        teacher_logprobs + math.log(TEACHER_SHARE), student_logprobs + math.log1p(-TEACHER_SHARE)
    )
    return (teacher_logprobs.exp() * (teacher_logprobs - mixed)).sum(dim=-1)
