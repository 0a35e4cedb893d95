"""How far two programs may differ that compute the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trd_ray.choices import DType
from trd_ray.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest differences of per-token log-probabilities that rounding alone explains, in nats."""

    mean: float
    largest: float


# bfloat16 keeps 8 bits: a logit of 10 is off by up to 0.03, and layers add up. float32 keeps 24.
TOLERANCES = {
    DType.FLOAT32: Tolerance(mean=1e-4, largest=5e-3),
    DType.BFLOAT16: Tolerance(mean=2e-2, largest=5e-1),
}


@dataclass(frozen=True, kw_only=True)
class LogprobAgreement:
    """Differences between two programs' log-probabilities of the same tokens, in nats."""

    num_tokens: int
    mean: float
    largest: float

    def within(self, tolerance: Tolerance) -> bool:
        return self.mean <= tolerance.mean and self.largest <= tolerance.largest


def compare_logprobs(pairs: Sequence[tuple[FloatArray, FloatArray]]) -> LogprobAgreement:
    """Compare [T] with [T] of each pair.

    Raises `ValueError` if a pair has different lengths, or there are no tokens.
    """
    for index, (ours, theirs) in enumerate(pairs):
        if ours.shape != theirs.shape:
            raise ValueError(f"compare_logprobs: pair {index} has shapes {ours.shape} and {theirs.shape}")
    if not any(len(ours) for ours, _ in pairs):
        raise ValueError("compare_logprobs: no tokens; expected one or more")
    differences = np.concatenate([np.abs(ours - theirs) for ours, theirs in pairs])
    return LogprobAgreement(
        num_tokens=len(differences), mean=float(differences.mean()), largest=float(differences.max())
    )
