"""The limits of a pool of engines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """Longest waits of a pool, in seconds, and how many requests a member holds."""

    request_s: float
    """For the answer to one request."""
    start_s: float
    """Until a member's process serves."""
    replace_s: float
    """Until a replacement serves, its weights included."""
    num_slots: int
