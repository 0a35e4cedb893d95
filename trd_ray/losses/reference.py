"""The divergences once more, in float64 and one token at a time: slow, and meant to be read.

Nothing here is shared with the fast path, so that an error cannot be in both.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def reference_divergence(
    student_logits: Float64Array, teacher_logits: Float64Array, *, divergence: str
) -> tuple[Float64Array, Float64Array]:
    """Value and gradient of each token's divergence.

    With p the student's and q the teacher's distribution, and z the student's logits:

    forward_kl: KL(q || p) = sum_v q_v log(q_v / p_v),    d/dz_v = p_v - q_v
    reverse_kl: KL(p || q) = sum_v p_v log(p_v / q_v),    d/dz_v = p_v (log(p_v / q_v) - KL(p || q))

    Both gradients follow from d log p_u / dz_v = [u = v] - p_v.

    Args:
        student_logits: [N, V], -inf allowed.
        teacher_logits: [N, V], -inf allowed.

    Returns:
        [N] values in nats and [N, V] gradients to the student's logits.

    Raises:
        ValueError: an unknown divergence.
    """
    values = np.zeros(len(student_logits))
    gradients = np.zeros(np.shape(student_logits))
    for token in range(len(student_logits)):
        p = _softmax(student_logits[token])
        q = _softmax(teacher_logits[token])
        if divergence == "forward_kl":
            values[token] = _kl(q, p)
            gradients[token] = p - q
        elif divergence == "reverse_kl":
            values[token] = _kl(p, q)
            for entry in range(len(p)):
                if p[entry] > 0:
                    log_ratio = math.log(p[entry]) - math.log(q[entry])
                    gradients[token, entry] = p[entry] * (log_ratio - values[token])
        else:
            raise ValueError(f"divergence: got {divergence!r}; expected forward_kl or reverse_kl")
    return values, gradients


def _softmax(logits: Float64Array) -> Float64Array:
    weights = np.array([math.exp(logit - max(logits)) for logit in logits])
    return weights / math.fsum(weights)


def _kl(a: Float64Array, b: Float64Array) -> float:
    total = 0.0
    for a_v, b_v in zip(a, b, strict=True):
        if a_v > 0:
            total += a_v * (math.log(a_v) - math.log(b_v)) if b_v > 0 else math.inf
    return total
