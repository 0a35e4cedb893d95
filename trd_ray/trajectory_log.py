"""The durable record of every trajectory: one Parquet file a learner step.

Token ids are those of the engine; texts are for people and graders only. Rejected trajectories
are kept with their reason. A file is written under a temporary name and renamed, so a reader
never meets half of one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trd_ray.errors import DataError, brief, describe
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.token_values import HalfArray, TokenValues
from trd_ray.types import FloatArray, IntArray, TeacherContext, Trajectory, TrajectorySource

_FILE = re.compile(r"step_(\d+)\.parquet")
_INTS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float32())
_HALVES = pa.list_(pa.float16())
_NO_INTS: IntArray = np.zeros(0, dtype=np.int32)
_NO_FLOATS: FloatArray = np.zeros(0, dtype=np.float32)

SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("problem", pa.string(), nullable=False),
        pa.field("reference", pa.string()),
        pa.field("prompt_token_ids", _INTS, nullable=False),
        pa.field("rollout_token_ids", _INTS, nullable=False),
        pa.field("rollout_text", pa.string(), nullable=False),
        pa.field("rollout_logprobs", _FLOATS, nullable=False),
        pa.field("rollout_correct", pa.bool_()),
        pa.field("policy_version_min", pa.int32()),
        pa.field("policy_version_max", pa.int32()),
        pa.field("trajectory_source", pa.string(), nullable=False),
        pa.field("trajectory_token_ids", _INTS, nullable=False),
        pa.field("trajectory_text", pa.string(), nullable=False),
        pa.field("trajectory_correct", pa.bool_()),
        pa.field("teacher_context", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("learner_step", pa.int32(), nullable=False),
        pa.field("rollout_first_wrong_step", pa.int32()),
        pa.field("trajectory_first_wrong_step", pa.int32()),
        pa.field("gate_reason", pa.string(), nullable=False),
        pa.field("num_kept", pa.int32(), nullable=False),
        pa.field("refinement_token_ids", _INTS),
        pa.field("refinement_text", pa.string()),
        pa.field("refinement_correct", pa.bool_()),
        pa.field("trajectory_divergence", _HALVES),
        pa.field("trajectory_student_logprobs", _HALVES),
    ]
)
"""The columns, in order. Nullable ones are null where the value does not exist."""

_OF_LEARNER = ("trajectory_divergence", "trajectory_student_logprobs")
"""Columns that files of versions which did not record them lack: null there."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrajectoryRow:
    """One row, typed. Fields are the columns of `SCHEMA`."""

    prompt_id: str
    epoch: int
    sample_index: int
    problem: str
    reference: str | None
    prompt_token_ids: IntArray
    rollout_token_ids: IntArray
    rollout_text: str
    rollout_logprobs: FloatArray
    rollout_correct: bool | None
    """This and what else is of the rollout is None, or empty, where the student answered nothing."""
    policy_version_min: int | None
    """None if the student made no token."""
    policy_version_max: int | None
    trajectory_source: TrajectorySource
    trajectory_token_ids: IntArray
    trajectory_text: str
    """Empty if the trajectory was rejected before it was made."""
    trajectory_correct: bool | None
    """None if the trajectory was rejected before it was made."""
    teacher_context: TeacherContext
    outcome: Outcome
    reason: RejectReason
    learner_step: int
    rollout_first_wrong_step: int | None
    """Index from 0, see `Grade.first_wrong_step`."""
    trajectory_first_wrong_step: int | None
    gate_reason: RejectReason
    """Why the refinement was broken or refused, whatever was trained on instead."""
    num_kept: int
    """First tokens of a spliced trajectory that are the rollout's; of a speculative one, all that the
    student made. Of a rollout that is trained on in place of a refused splice, those that it had kept."""
    refinement_token_ids: IntArray | None
    """What the teacher generated for this rollout; None if nothing."""
    refinement_text: str | None
    refinement_correct: bool | None
    trajectory_divergence: HalfArray | None
    """Each token's value in the objective, see `TokenValues`; None until it is learned from, if it never
    is, and if the learner records none. The next likewise."""
    trajectory_student_logprobs: HalfArray | None

    @classmethod
    def of(
        cls, trajectory: Trajectory, *, learner_step: int, token_values: TokenValues | None = None
    ) -> TrajectoryRow:
        """The row of a trajectory that ended in `learner_step`."""
        rollout, refinement, prompt = trajectory.rollout, trajectory.refinement, trajectory.prompt
        answer = None if rollout is None else rollout.completion
        grade = trajectory.grade
        return cls(
            prompt_id=prompt.problem.prompt_id,
            epoch=prompt.epoch,
            sample_index=prompt.sample_index,
            problem=prompt.problem.problem,
            reference=prompt.problem.reference,
            prompt_token_ids=prompt.token_ids,
            rollout_token_ids=_NO_INTS if answer is None else answer.token_ids,
            rollout_text="" if answer is None else answer.text,
            rollout_logprobs=_NO_FLOATS if answer is None else answer.logprobs,
            rollout_correct=None if rollout is None else rollout.grade.correct,
            policy_version_min=trajectory.policy_version_min,
            policy_version_max=trajectory.policy_version_max,
            trajectory_source=trajectory.source,
            trajectory_token_ids=trajectory.token_ids,
            trajectory_text=trajectory.text,
            trajectory_correct=grade.correct if grade else None,
            teacher_context=trajectory.teacher_context,
            outcome=trajectory.outcome,
            reason=trajectory.reason,
            learner_step=learner_step,
            rollout_first_wrong_step=None if rollout is None else rollout.grade.first_wrong_step,
            trajectory_first_wrong_step=grade.first_wrong_step if grade else None,
            gate_reason=trajectory.gate_reason,
            num_kept=trajectory.num_kept,
            refinement_token_ids=None if refinement is None else refinement.completion.token_ids,
            refinement_text=None if refinement is None else refinement.completion.text,
            refinement_correct=None if refinement is None else refinement.grade.correct,
            trajectory_divergence=None if token_values is None else token_values.divergence,
            trajectory_student_logprobs=None if token_values is None else token_values.student_logprobs,
        )


def write_trajectories(
    folder: Path,
    trajectories: Sequence[Trajectory],
    *,
    learner_step: int,
    token_values: Sequence[TokenValues | None] | None = None,
) -> Path:
    """Write all trajectories that ended in a step to `folder/step_NNNNNN.parquet`; returns that path.

    `token_values` are the trajectories' own, in their order; None if nothing is learned from them yet.
    """
    rows = [
        TrajectoryRow.of(trajectory, learner_step=learner_step, token_values=values)
        for trajectory, values in zip(trajectories, token_values or [None] * len(trajectories), strict=True)
    ]
    columns = [pa.array([_plain(getattr(row, f.name)) for row in rows], type=f.type) for f in SCHEMA]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{learner_step:06d}.parquet"
    temporary = folder / f".{path.name}.tmp"
    pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), _local(temporary), compression="zstd")
    os.replace(temporary, path)
    return path


def _local(path: Path) -> Path:
    """As pyarrow takes it for a file: before the colon of a relative path it would see a scheme."""
    return path.absolute()


def _plain(value: object) -> object:
    return str(value) if isinstance(value, str) else value


def logged_steps(folder: Path) -> tuple[int, ...]:
    """The learner steps that have a file, in order; () if there is no folder."""
    matches = (_FILE.fullmatch(path.name) for path in folder.glob("step_*.parquet"))
    return tuple(sorted(int(match[1]) for match in matches if match))


def read_trajectories(folder: Path, *, steps: Collection[int] | None = None) -> Iterator[TrajectoryRow]:
    """Rows in order of step, one file in memory at a time; all steps if `steps` is None.

    Raises `DataError` naming a step that has no file, or a file that lacks a column.
    """
    logged = logged_steps(folder)
    wanted = logged if steps is None else sorted(set(steps))
    missing = sorted(set(wanted) - set(logged))
    if missing:
        raise DataError(
            describe(
                "a step has no trajectories", where=str(folder), got=f"step {missing[0]}",
                expected=f"one of the {len(logged)} steps {logged[:1]} .. {logged[-1:]}",
                remedy="ask for a step of this run",
            )
        )  # fmt: skip
    for step in wanted:
        yield from _read_file(folder / f"step_{step:06d}.parquet")


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            describe(
                "a trajectories file cannot be read", where=str(path), got=brief(error),
                expected="a whole Parquet file", remedy="move the file away; the other steps can be read",
            )
        ) from error  # fmt: skip


def read_footer(path: Path) -> pq.FileMetaData:
    """Rows and sizes of one file. Raises `DataError` if it cannot be read."""
    with _whole(path):
        return pq.read_metadata(_local(path))


def read_step_table(path: Path) -> pa.Table:
    """One file with the columns of `SCHEMA`. Raises `DataError` if it cannot be read or lacks one."""
    with _whole(path):
        table = pq.read_table(_local(path))
    for name in _OF_LEARNER:
        if name not in table.column_names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), _HALVES))
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError(
            describe(
                "a trajectories file lacks a column", where=str(path), got=", ".join(table.column_names),
                expected=", ".join(missing), remedy="use a file that was written by this version",
            )
        )  # fmt: skip
    return table.select(SCHEMA.names)


def _read_file(path: Path) -> Iterator[TrajectoryRow]:
    for row in read_step_table(path).to_pylist():
        for name in ("prompt_token_ids", "rollout_token_ids", "trajectory_token_ids"):
            row[name] = np.asarray(row[name], dtype=np.int32)
        row["rollout_logprobs"] = np.asarray(row["rollout_logprobs"], dtype=np.float32)
        row["trajectory_source"] = TrajectorySource(row["trajectory_source"])
        row["teacher_context"] = TeacherContext(row["teacher_context"])
        row["outcome"] = Outcome(row["outcome"])
        row["reason"] = RejectReason(row["reason"])
        row["gate_reason"] = RejectReason(row["gate_reason"])
        if row["refinement_token_ids"] is not None:
            row["refinement_token_ids"] = np.asarray(row["refinement_token_ids"], dtype=np.int32)
        for name in _OF_LEARNER:
            if row[name] is not None:
                row[name] = np.asarray(row[name], dtype=np.float16)
        yield TrajectoryRow(**row)
