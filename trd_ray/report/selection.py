"""Which trajectories the page holds, if a run has more than it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

from trd_ray.report.kinds import Kind
from trd_ray.trajectory_log import read_footer

MAX_TRAJECTORIES = 20_000
MAX_TEXT_BYTES = 40 * 2**20
"""Of all texts of a page, before compression."""
MAX_CHARS = 6_000
"""Characters of one text that the page holds."""
MAX_TOKENS = 4_000
"""Tokens of one text of which the page holds the numbers."""
MAX_STEPS = 1_000
"""Steps that trajectories are taken from: each costs reading a whole file."""

_TEXTS = ("rollout_text", "trajectory_text", "refinement_text", "reference", "problem")


def spread(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of `values`, evenly spaced, first and last among them."""
    if len(values) <= most:
        return list(values)
    if most <= 1:
        return list(values[-1:])
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def take_turns(kinds: Sequence[Kind], quota: int) -> list[int]:
    """Indices of at most `quota` rows, in order; kinds take turns, so that a rare kind is seen too."""
    if len(kinds) <= quota:
        return list(range(len(kinds)))
    by_kind: dict[Kind, list[int]] = {kind: [] for kind in Kind}
    for index, kind in enumerate(kinds):
        by_kind[kind].append(index)
    turns = zip_longest(*by_kind.values())
    return sorted([index for turn in turns for index in turn if index is not None][:quota])


def quota_per_step(
    num_rows: Sequence[int], *, bytes_per_row: float, most: int, most_bytes: float
) -> int | None:
    """Rows of a step that may be kept so that at most `most` rows of `most_bytes` are; None: all.

    Steps with fewer rows than the quota keep them all, and leave room for the others.
    """
    room = max(len(num_rows), min(most, int(most_bytes / max(1.0, bytes_per_row))))
    if sum(num_rows) <= room:
        return None
    low, high = 1, max(num_rows)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _kept(num_rows, middle) <= room else (low, middle - 1)
    return low


def _kept(num_rows: Sequence[int], quota: int) -> int:
    return sum(min(n, quota) for n in num_rows)


def measure(paths: Sequence[Path], *, shown: Callable[[float], float]) -> tuple[list[int], float]:
    """Rows of each file, and the mean bytes of text that a row will take on the page.

    From the files' footers alone. `shown` says how many bytes of a text of that mean length are kept.
    """
    num_rows: list[int] = []
    sizes = dict.fromkeys(_TEXTS, 0)
    for path in paths:
        footer = read_footer(path)
        num_rows.append(footer.num_rows)
        for group in range(footer.num_row_groups):
            for column in range(footer.num_columns):
                part = footer.row_group(group).column(column)
                if part.path_in_schema in sizes:
                    sizes[part.path_in_schema] += part.total_uncompressed_size
    total = max(1, sum(num_rows))
    return num_rows, sum(shown(size / total) for size in sizes.values())
