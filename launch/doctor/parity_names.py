"""Names of the checks of `parity.py`, which can be told without loading the real stack."""

from __future__ import annotations

from launch.doctor.finding import Finding, not_applicable

LEARNER = "vLLM against learner log-probabilities"
DECODING = "vLLM decoding against its prefill"
PADDING_IDS = "no padding among sampled ids"
FUSED = "fused against prefill scores"
PUSH = "weight sync"
ZERO = "student = teacher gives divergence 0"
CHECKPOINT = "checkpoint round trip"
PARITY_NAMES = (LEARNER, DECODING, PADDING_IDS, FUSED, PUSH, ZERO, CHECKPOINT)
"""In the order in which they are made."""


def parity_not_made(because: str) -> list[Finding]:
    """All of them, where there is nothing to make them with."""
    return [not_applicable(name, because) for name in PARITY_NAMES]
