"""A time source that moves when told."""

from __future__ import annotations


class HandClock:
    """All times in the tests are binary fractions, so that sums are exact."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at
