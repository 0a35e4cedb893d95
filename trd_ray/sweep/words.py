"""The leaderboard's numbers in words, the same on every page."""

from __future__ import annotations

from collections.abc import Mapping

from trd_ray.evaluation import Interval
from trd_ray.sweep.leaderboard import Leaderboard, Row, TrialLine
from trd_ray.sweep.state import TrialStatus
from trd_ray.sweep.statistics import PairedDifference

NOTHING = "-"
_MINUTE, _HOUR = 60.0, 3600.0


def number(value: float | None) -> str:
    """Three decimals, or three significant digits where that says more."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if 0.01 <= abs(value) < 100 or value == 0 else f"{value:.3g}"


def signed(value: float) -> str:
    return f"{'+' if value >= 0 else ''}{number(value)}"


def duration(seconds: float) -> str:
    """Two units at most."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f} min {seconds % _MINUTE:.0f} s"
    return f"{seconds // _HOUR:.0f} h {seconds % _HOUR / _MINUTE:.0f} min"


def mean(row: Row) -> str:
    return number(row.mean)


def interval(row: Row) -> str:
    """95% over seeds; why there is none."""
    if row.interval is not None:
        return _ends(row.interval)
    return "one seed: none" if row.num_done == 1 else NOTHING


def _ends(ends: Interval) -> str:
    return f"{number(ends[0])} to {number(ends[1])}"


def difference(row: Row, board: Leaderboard) -> str:
    """To the first row."""
    if row.mean is not None and row is board.rows[0]:
        return "first"
    return NOTHING if row.difference is None else _difference(row.difference)


def _difference(paired: PairedDifference) -> str:
    if paired.mean is None:
        return "no seed in common"
    if paired.interval is None:
        return f"{signed(paired.mean)} (one pair: no interval)"
    text = f"{signed(paired.mean)} ({_ends(paired.interval)})"
    return text if paired.is_distinguishable else f"{text}, not distinguishable"


def statuses(counts: Mapping[TrialStatus, int]) -> str:
    """In the order of their kinds."""
    return ", ".join(f"{counts[status]} {status.value}" for status in TrialStatus if counts.get(status))


def trial_value(line: TrialLine) -> str:
    """What a trial has reached, and how far it has come where it is not done."""
    if line.record.status is TrialStatus.DONE or line.result.value is None:
        return number(line.result.value)
    return f"{number(line.result.value)} at step {line.result.learner_step}"


def first_line(message: str) -> str:
    """Why a trial failed: the last line that it printed is the nearest to the cause."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("exit code")]
    problem = next((line for line in told if "Error" in line), told[-1] if told else "")
    return " - ".join(part for part in (lines[0] if lines else "", problem) if part)


READING = (
    "The mean is over trials that are done, one a seed (repeats of a seed are averaged first). Its 95% "
    "interval is over seeds: mean plus or minus t times the standard error, n - 1 degrees of freedom, not "
    "cut where it leaves the possible values: that says how little so few seeds tell. One seed has none. "
    "The difference to the first row is taken seed by seed, over the seeds that both have; not "
    "distinguishable means that its 95% interval holds 0. Intervals are not corrected for the number of "
    "rows. Time and tokens are those of all trials of a row."
)
