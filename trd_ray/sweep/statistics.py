"""What few seeds can tell: intervals of means, and of differences between pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trd_ray.evaluation import Interval, student_t_quantile

_TAIL = 0.975


def seeds_interval(values: Sequence[float]) -> Interval | None:
    """95% interval of the mean of independent values: mean +- t * s / sqrt(n), n - 1 degrees of freedom.

    Not cut to a range: with two seeds t is 12.7, and an interval that leaves [0, 1] says how little they
    tell. None for fewer than two.
    """
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = student_t_quantile(_TAIL, df=n - 1) * math.sqrt(variance / n)
    return (mean - half, mean + half)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """One variant less another, over the seeds that both have."""

    num_pairs: int
    mean: float | None
    """None without a pair."""
    interval: Interval | None
    """None for fewer than two pairs."""

    @property
    def is_distinguishable(self) -> bool:
        """The 95% interval leaves 0 out. (All pairs alike in a difference other than 0 count too.)"""
        return self.interval is not None and not self.interval[0] <= 0.0 <= self.interval[1]


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> PairedDifference:
    """`ours` - `theirs` by seed. What a seed does to both alike falls out of it."""
    seeds = sorted(ours.keys() & theirs.keys())
    pairs = [ours[seed] - theirs[seed] for seed in seeds]
    mean = math.fsum(pairs) / len(pairs) if pairs else None
    return PairedDifference(num_pairs=len(pairs), mean=mean, interval=seeds_interval(pairs))
