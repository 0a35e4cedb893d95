"""The losses once more, in float64 and one token at a time: slow, and meant to be read.

Nothing here is shared with the fast path, so that an error cannot be in both. A token's divergence is
a sum over items (an entry of the vocabulary, or the bucket that holds all others). Each item has the
teacher's probability q, the student's p, and the row dp/dz of p's derivatives to the student's logits
z, so that value and gradient are

    sum over items of f(q, p)    and    sum over items of df/dp * dp/dz

A loss that looks at the sampled token y only is a number and its derivative to log p(y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trd_ray.losses.options import DivergenceOptions, ObjectiveOptions

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Item:
    """One term of a divergence."""

    q: float
    p: float
    dp: Float64Array
    """[V] dp / dz."""


def reference_divergence(
    student_logits: Float64Array, teacher_logits: Float64Array, options: DivergenceOptions
) -> tuple[Float64Array, Float64Array]:
    """Value and gradient of each token's divergence, over the full vocabulary or the teacher's top k.

    Args:
        student_logits: [N, V], -inf allowed.
        teacher_logits: [N, V], -inf allowed.

    Returns:
        [N] values in nats and [N, V] gradients to the student's logits.
    """
    values = np.zeros(len(student_logits))
    gradients = np.zeros(np.shape(student_logits))
    for token in range(len(student_logits)):
        p, q = softmax(student_logits[token]), softmax(teacher_logits[token])
        values[token], gradients[token] = _divergence(p, q, options)
    return values, gradients


def reference_objective(
    student_logits: Float64Array,
    teacher_logits: Float64Array | None,
    target_ids: list[int],
    rollout_logprobs: list[float],
    advantages: list[float],
    options: ObjectiveOptions,
) -> tuple[Float64Array, Float64Array]:
    """Value and gradient of each token's whole objective.

    Args:
        student_logits: [N, V].
        teacher_logits: [N, V]; None where no teacher is needed.
        target_ids: [N] the tokens y.
        rollout_logprobs: [N] log-probability of y under the policy that sampled it.
        advantages: [N].

    Returns:
        [N] values in nats and [N, V] gradients to the student's logits.
    """
    values = np.zeros(len(student_logits))
    gradients = np.zeros(np.shape(student_logits))
    for token, y in enumerate(target_ids):
        p = softmax(student_logits[token])
        q = None if teacher_logits is None else softmax(teacher_logits[token])
        parts = [_main_term(p, q, y, rollout_logprobs[token], options.divergence)]
        if options.gate is not None:
            assert q is not None
            if entropy(q) > options.gate.threshold:
                gated = DivergenceOptions(support="top_k", top_k=options.gate.top_k, renormalize="teacher")
                parts.append(_scaled(options.gate.coef, _divergence(p, q, gated)))
        if options.reward is not None:
            number, slope = policy_term(
                math.log(p[y]), rollout_logprobs[token], advantages[token], options.reward.clip
            )
            parts.append(_scaled(options.reward.coef, (number, slope * dlogp(p, y))))
        values[token] = math.fsum(value for value, _ in parts)
        gradients[token] = sum(gradient for _, gradient in parts)
    return values, gradients


def _main_term(
    p: Float64Array, q: Float64Array | None, y: int, rollout_logprob: float, options: DivergenceOptions
) -> tuple[float, Float64Array]:
    if options.divergence == "none":
        return 0.0, np.zeros(len(p))
    if options.divergence == "nll":
        return -math.log(p[y]), -dlogp(p, y)
    assert q is not None
    if options.support != "sampled":
        return _divergence(p, q, options)
    value, slope = sampled_term(math.log(p[y]), math.log(q[y]), rollout_logprob, options)
    if options.clip == "token" and options.clip_max is not None and value > options.clip_max:
        return options.clip_max, np.zeros(len(p))
    return value, slope * dlogp(p, y)


def sampled_term(
    log_p: float, log_q: float, rollout_logprob: float, options: DivergenceOptions
) -> tuple[float, float]:
    """Estimate from one token, and its derivative to log p."""
    if options.divergence == "forward_kl":
        return log_q - log_p, -1.0
    if options.estimator == "k1":
        return log_p - log_q, 1.0
    if options.estimator == "k3":
        ratio = math.exp(log_q) / math.exp(log_p)
        return ratio - 1.0 - math.log(ratio), -ratio + 1.0
    return policy_term(log_p, rollout_logprob, log_q - rollout_logprob, options.ratio_clip)


def policy_term(log_p: float, rollout_logprob: float, advantage: float, clip: float) -> tuple[float, float]:
    """-min(r A, clip(r) A), and its derivative to log p: -r A, or 0 where the clipped side is smaller."""
    ratio = math.exp(log_p) / math.exp(rollout_logprob)
    clipped = min(max(ratio, 1.0 - clip), 1.0 + clip)
    if clipped * advantage < ratio * advantage:
        return -clipped * advantage, 0.0
    return -ratio * advantage, -ratio * advantage


def entropy(q: Float64Array) -> float:
    return -math.fsum(q_v * math.log(q_v) for q_v in q if q_v > 0)


def softmax(logits: Float64Array) -> Float64Array:
    weights = np.array([math.exp(logit - max(logits)) for logit in logits])
    return weights / math.fsum(weights)


def dlogp(p: Float64Array, y: int) -> Float64Array:
    """d log p_y / dz_v = [v = y] - p_v."""
    row = -p.copy()
    row[y] += 1.0
    return row


def _divergence(p: Float64Array, q: Float64Array, options: DivergenceOptions) -> tuple[float, Float64Array]:
    value, gradient = 0.0, np.zeros(len(p))
    for item in _items(p, q, options):
        term, slope = _term(item.q, item.p, options)
        if options.clip == "entry" and options.clip_max is not None and term > options.clip_max:
            term, slope = options.clip_max, 0.0
        value += term
        gradient += slope * item.dp
    if options.clip == "token" and options.clip_max is not None and value > options.clip_max:
        return options.clip_max, np.zeros(len(p))
    return value, gradient


def _items(p: Float64Array, q: Float64Array, options: DivergenceOptions) -> list[Item]:
    if options.support == "full":
        return [Item(q[v], p[v], p[v] * dlogp(p, v)) for v in range(len(p))]
    assert options.top_k is not None
    support = sorted(range(len(q)), key=lambda v: -q[v])[: options.top_k]
    rest = [v for v in range(len(q)) if v not in support]
    if options.tail == "bucket":
        items = [Item(q[v], p[v], p[v] * dlogp(p, v)) for v in support]
        bucket_dp = sum((p[v] * dlogp(p, v) for v in rest), start=np.zeros(len(p)))
        return [*items, Item(math.fsum(q[rest]), math.fsum(p[rest]), bucket_dp)]
    teacher_mass = 1.0 if options.renormalize == "none" else math.fsum(q[support])
    if options.renormalize != "both":
        return [Item(q[v] / teacher_mass, p[v], p[v] * dlogp(p, v)) for v in support]
    # A softmax over the support alone: entries outside have no part in it.
    within = np.array([p[v] if v in support else 0.0 for v in range(len(p))])
    within = within / math.fsum(within)
    return [
        Item(
            q[v] / teacher_mass,
            within[v],
            np.array([within[v] * ((u == v) - within[u]) for u in range(len(p))]),
        )
        for v in support
    ]


def _term(q: float, p: float, options: DivergenceOptions) -> tuple[float, float]:
    """f(q, p) and df/dp. 0 log 0 is 0."""
    name, beta = options.divergence, options.beta
    if name == "forward_kl" or (name == "jsd" and beta == 0.0):
        if q == 0.0:
            return 0.0, 0.0
        return (q * math.log(q / p), -q / p) if p > 0.0 else (math.inf, 0.0)
    if name == "reverse_kl" or (name == "jsd" and beta == 1.0):
        if p == 0.0:
            return 0.0, 0.0
        return (p * math.log(p / q), math.log(p / q) + 1.0) if q > 0.0 else (math.inf, 0.0)
    m = beta * q + (1.0 - beta) * p
    of_teacher = beta * q * math.log(q / m) if q > 0.0 else 0.0
    if p == 0.0:
        return of_teacher, 0.0
    # df/dp = -beta q (1 - beta) / m + (1 - beta) (log(p / m) + 1 - p (1 - beta) / m)
    slope = -beta * q * (1.0 - beta) / m
    slope += (1.0 - beta) * (math.log(p / m) + 1.0 - p * (1.0 - beta) / m)
    return of_teacher + (1.0 - beta) * p * math.log(p / m), slope


def _scaled(coef: float, part: tuple[float, Float64Array]) -> tuple[float, Float64Array]:
    return coef * part[0], coef * part[1]
