"""Losses that look at the sampled token only: estimates of a KL, and policy gradients.

All tensors are [N], in nats. q is the teacher's probability of the token, p the student's, o that of
the policy which sampled it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trd_ray.losses.options import DivergenceOptions


def sampled_divergence(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    rollout_logprobs: Tensor | None,
    *,
    options: DivergenceOptions,
) -> Tensor:
    """Estimate of a divergence from one token.

    forward_kl: log q - log p, for tokens of the teacher
    reverse_kl, for tokens of the student:
        k1:  log p - log q
        k3:  r - 1 - log r, r = q / p (Schulman 2020, "Approximating KL divergence")
        policy_gradient:  `clipped_policy_loss` with advantage log q - log o, held constant

    Raises:
        ValueError: `policy_gradient` without rollout_logprobs.
    """
    if options.formula == "forward_kl":
        return teacher_logprobs - student_logprobs
    if options.estimator == "k1":
        return student_logprobs - teacher_logprobs
    if options.estimator == "k3":
        log_ratio = teacher_logprobs - student_logprobs
        return torch.expm1(log_ratio) - log_ratio
    if rollout_logprobs is None:
        raise ValueError("rollout_logprobs: got None; expected [N], for estimator 'policy_gradient'")
    advantages = (teacher_logprobs - rollout_logprobs).detach()
    return clipped_policy_loss(student_logprobs, rollout_logprobs, advantages, clip=options.ratio_clip)


def clipped_policy_loss(
    student_logprobs: Tensor, rollout_logprobs: Tensor, advantages: Tensor, *, clip: float
) -> Tensor:
    """-min(r A, clip(r, 1 - clip, 1 + clip) A), r = p / o (Schulman et al. 2017, PPO, equation 7)."""
    ratio = torch.exp(student_logprobs - rollout_logprobs)
    return -torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)
