"""Reads the trajectories that the page shows, as columns: Parquet in, no record a row in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trd_ray.outcomes import Outcome
from trd_ray.report.kinds import REWRITTEN, Kind, kind_of
from trd_ray.report.selection import (
    MAX_CHARS,
    MAX_STEPS,
    MAX_TEXT_BYTES,
    MAX_TRAJECTORIES,
    measure,
    quota_per_step,
    spread,
    take_turns,
)
from trd_ray.trajectory_log import read_step_table
from trd_ray.types import TrajectorySource

Numbers = npt.NDArray[Any]

LISTS = (
    "rollout_token_ids",
    "rollout_logprobs",
    "trajectory_token_ids",
    "trajectory_divergence",
    "trajectory_student_logprobs",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trajectory as the page needs it. Texts and arrays are whole."""

    kind: Kind
    plain: dict[str, object]
    """The columns that are not arrays, by their names."""
    lists: dict[str, Numbers | None]
    """`LISTS`, by their names."""

    def text(self, name: str) -> str:
        return str(self.plain[name] or "")

    def number(self, name: str, *, none: int = -1) -> int:
        value = self.plain[name]
        return none if value is None else int(value)  # type: ignore[call-overload]

    @property
    def is_rewritten(self) -> bool:
        return self.plain["trajectory_source"] in REWRITTEN


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What was read of one run."""

    rows: tuple[Row, ...]
    """In order of step, and of the file within a step."""
    num_logged: int
    """Trajectories in the files of all steps that were looked at or left out."""
    num_steps: int
    """Steps that `rows` are from."""
    num_logged_steps: int

    @property
    def is_whole(self) -> bool:
        return len(self.rows) == self.num_logged


def read_rows(
    folder: Path,
    steps: Sequence[int],
    *,
    most: int = MAX_TRAJECTORIES,
    most_bytes: float = MAX_TEXT_BYTES,
) -> Rows:
    """At most `most` trajectories of `steps`, evenly over them; all, if they are that few.

    Within a step kinds take turns where some are left out. Raises `DataError` naming a file that cannot be
    read.
    """
    chosen = spread(steps, min(MAX_STEPS, most))
    paths = [folder / f"step_{step:06d}.parquet" for step in steps]
    num_rows, bytes_per_row = measure(paths, shown=lambda size: min(size, MAX_CHARS))
    by_step = dict(zip(steps, num_rows, strict=True))
    quota = quota_per_step(
        [by_step[step] for step in chosen], bytes_per_row=bytes_per_row, most=most, most_bytes=most_bytes
    ) if chosen else None  # fmt: skip
    rows: list[Row] = []
    for step in chosen:
        rows += _read_step(folder / f"step_{step:06d}.parquet", quota)
    return Rows(
        rows=tuple(rows),
        num_logged=sum(num_rows),
        num_steps=len(chosen),
        num_logged_steps=len(steps),
    )


def _read_step(path: Path, quota: int | None) -> list[Row]:
    table = read_step_table(path)
    kinds = _kinds(table)
    indices = take_turns(kinds, len(kinds) if quota is None else quota)
    if len(indices) < len(kinds):
        table = table.take(pa.array(indices, type=pa.int64()))
    plain = table.drop_columns([*LISTS, "prompt_token_ids", "refinement_token_ids"]).to_pylist()
    lists = {name: _arrays(table.column(name)) for name in LISTS}
    return [
        Row(kind=kinds[index], plain=values, lists={name: lists[name][i] for name in LISTS})
        for i, (index, values) in enumerate(zip(indices, plain, strict=True))
    ]


def _kinds(table: pa.Table) -> list[Kind]:
    names = ("outcome", "trajectory_source", "rollout_correct", "trajectory_correct")
    return [
        kind_of(
            outcome=Outcome(outcome),
            source=TrajectorySource(source),
            rollout_correct=before,
            trajectory_correct=after,
        )
        for outcome, source, before, after in zip(
            *(table.column(name).to_pylist() for name in names), strict=True
        )
    ]


def _arrays(column: pa.ChunkedArray) -> list[Numbers | None]:
    """One array a row, without a copy; None where the column is null."""
    found: list[Numbers | None] = []
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy(zero_copy_only=False)
        values = chunk.values.to_numpy(zero_copy_only=False)
        valid = chunk.is_valid().to_pylist()
        found += [
            values[start:end] if there else None
            for start, end, there in zip(offsets[:-1], offsets[1:], valid, strict=True)
        ]
    return found


def common_prefix(before: Numbers, after: Numbers) -> int:
    """Tokens that are the same from the beginning on."""
    most = min(len(before), len(after))
    differ = np.flatnonzero(before[:most] != after[:most])
    return int(differ[0]) if len(differ) else most
