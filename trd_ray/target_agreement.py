"""Whether two ways of scoring say the same: how far apart their targets are. Axis letters: T, K."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trd_ray.types import TopKTargets


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """Largest differences between two records of the same tokens, in nats."""

    token_logprob: float
    topk_logprob: float
    """Of the i-th most likely token, whichever it is."""
    shared_logprob: float
    """Of tokens that both list."""
    unshared_margin: float
    """How far above the other's K-th log-probability a token lies that the other does not list. Where
    the two agree, only near-ties at the edge differ, so it is as small as the other numbers."""


def compare_targets(one: TopKTargets, other: TopKTargets) -> Disagreement:
    """Raises `ValueError` if the records are of different numbers of tokens or K."""
    if one.topk_ids.shape != other.topk_ids.shape:
        raise ValueError(f"compare_targets: got shapes {one.topk_ids.shape} and {other.topk_ids.shape}")
    a, b = one.topk_logprobs.astype(np.float32), other.topk_logprobs.astype(np.float32)
    same = one.topk_ids[:, :, None] == other.topk_ids[:, None, :]
    apart = np.abs(a[:, :, None] - b[:, None, :])
    edge = np.zeros(0, dtype=np.float32)
    if a.shape[1]:
        edge = np.concatenate([(a - b[:, -1:])[~same.any(axis=2)], (b - a[:, -1:])[~same.any(axis=1)]])
    return Disagreement(
        token_logprob=float(np.abs(one.token_logprobs - other.token_logprobs).max(initial=0.0)),
        topk_logprob=float(np.abs(a - b).max(initial=0.0)),
        shared_logprob=float(apart[same].max(initial=0.0)),
        unshared_margin=float(np.abs(edge).max(initial=0.0)),
    )
