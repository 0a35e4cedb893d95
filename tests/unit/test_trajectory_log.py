from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trd_ray.errors import DataError
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.token_values import TokenValues
from trd_ray.trajectory_log import SCHEMA, logged_steps, read_trajectories, write_trajectories
from trd_ray.types import (
    Completion,
    Grade,
    Problem,
    Prompt,
    Refinement,
    RefinePrompt,
    Rollout,
    StopReason,
    TeacherContext,
    Trajectory,
    TrajectorySource,
)

CONTRACT = [
    "prompt_id",
    "epoch",
    "sample_index",
    "problem",
    "reference",
    "prompt_token_ids",
    "rollout_token_ids",
    "rollout_text",
    "rollout_logprobs",
    "rollout_correct",
    "policy_version_min",
    "policy_version_max",
    "trajectory_source",
    "trajectory_token_ids",
    "trajectory_text",
    "trajectory_correct",
    "teacher_context",
    "outcome",
    "reason",
    "learner_step",
]


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def completion(text: str, *ids: int) -> Completion:
    return Completion(
        token_ids=ints(*ids), logprobs=np.linspace(-1, -0.1, len(ids), dtype=np.float32), text=text,
        stop_reason=StopReason.STOP, policy_version_min=3, policy_version_max=4,
    )  # fmt: skip


def rollout(reference: str | None = "1+1=2") -> Rollout:
    problem = Problem(prompt_id="p/1", problem='1+1 "quoted"\n{{ x }}', answer="2", reference=reference)
    return Rollout(
        prompt=Prompt(problem=problem, epoch=2, sample_index=1, token_ids=ints(5, 6), seed=0),
        completion=completion("1+1=3", 7, 8, 9),
        grade=Grade(correct=False, answer="3", num_steps=1, first_wrong_step=0),
    )


def consumed() -> Trajectory:
    context = RefinePrompt(token_ids=ints(1), num_cut_rollout_tokens=0, num_cut_reference_tokens=0)
    refinement = Refinement(
        prompt=context, completion=completion("1+1=2", 7, 2), grade=Grade(correct=True, answer="2")
    )
    y_o = rollout()
    return Trajectory(
        prompt=y_o.prompt, rollout=y_o, refinement=refinement, source=TrajectorySource.REFINED,
        token_ids=ints(7, 2), text="1+1=2", grade=refinement.grade, policy_version_min=3,
        policy_version_max=4,
        teacher_context=TeacherContext.REFINE, teacher_context_ids=ints(1),
        outcome=Outcome.CONSUMED, reason=RejectReason.NONE,
    )  # fmt: skip


def rejected() -> Trajectory:
    y_o = rollout(reference=None)
    return Trajectory(
        prompt=y_o.prompt, rollout=y_o, refinement=None, source=TrajectorySource.REFINED, token_ids=ints(),
        text="", grade=None, policy_version_min=3, policy_version_max=4,
        gate_reason=RejectReason.PROMPT_TOO_LONG,
        teacher_context=TeacherContext.REFINE, teacher_context_ids=ints(),
        outcome=Outcome.REJECTED, reason=RejectReason.PROMPT_TOO_LONG,
    )  # fmt: skip


def test_the_columns_are_those_of_the_contract_and_typed(tmp_path):
    path = write_trajectories(tmp_path, [consumed()], learner_step=123)
    assert path.name == "step_000123.parquet"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    schema = pq.read_schema(path)
    assert schema.names[: len(CONTRACT)] == CONTRACT
    assert schema.names[len(CONTRACT) :] == [
        "rollout_first_wrong_step",
        "trajectory_first_wrong_step",
        "gate_reason",
        "num_kept",
        "refinement_token_ids",
        "refinement_text",
        "refinement_correct",
        "trajectory_divergence",
        "trajectory_student_logprobs",
    ]
    assert schema.equals(SCHEMA)
    assert schema.field("rollout_token_ids").type == pa.list_(pa.int32())
    assert schema.field("rollout_logprobs").type == pa.list_(pa.float32())
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_rows_come_back_as_they_were(tmp_path):
    write_trajectories(tmp_path, [consumed(), rejected()], learner_step=9)
    good, bad = read_trajectories(tmp_path)
    assert good.problem == '1+1 "quoted"\n{{ x }}'
    assert (good.prompt_id, good.epoch, good.sample_index, good.learner_step) == ("p/1", 2, 1, 9)
    assert good.rollout_token_ids.tolist() == [7, 8, 9]
    assert good.rollout_token_ids.dtype == np.int32
    np.testing.assert_array_equal(good.rollout_logprobs, completion("", 7, 8, 9).logprobs)
    assert (good.rollout_text, good.rollout_correct, good.rollout_first_wrong_step) == ("1+1=3", False, 0)
    assert (good.policy_version_min, good.policy_version_max) == (3, 4)
    assert good.trajectory_token_ids.tolist() == [7, 2]
    assert (good.trajectory_text, good.trajectory_correct) == ("1+1=2", True)
    assert good.trajectory_first_wrong_step is None
    assert good.trajectory_source is TrajectorySource.REFINED
    assert good.teacher_context is TeacherContext.REFINE
    # A rejected one keeps its rollout and its reason; what was never made is null.
    assert (bad.outcome, bad.reason) == (Outcome.REJECTED, RejectReason.PROMPT_TOO_LONG)
    assert (bad.trajectory_text, bad.trajectory_correct, bad.reference) == ("", None, None)
    assert bad.rollout_text == "1+1=3"
    assert bad.gate_reason is RejectReason.PROMPT_TOO_LONG
    # What the teacher generated is kept whatever became of it.
    assert (good.refinement_text, good.refinement_correct, bad.refinement_text) == ("1+1=2", True, None)
    assert good.refinement_token_ids is not None
    assert good.refinement_token_ids.tolist() == [7, 2]


def test_a_trajectory_without_a_rollout_has_none_of_its_columns(tmp_path):
    prompt = rollout().prompt
    t = Trajectory(
        prompt=prompt, rollout=None, refinement=None, source=TrajectorySource.REFERENCE, token_ids=ints(4, 2),
        text="1+1=2", grade=Grade(correct=True, answer="2"), policy_version_min=None,
        policy_version_max=None, teacher_context=TeacherContext.PROMPT, teacher_context_ids=ints(5, 6),
        outcome=Outcome.CONSUMED, reason=RejectReason.NONE,
    )  # fmt: skip
    write_trajectories(tmp_path, [t], learner_step=1)
    (row,) = read_trajectories(tmp_path)
    assert (row.rollout_correct, row.rollout_text, row.policy_version_min) == (None, "", None)
    assert len(row.rollout_token_ids) == len(row.rollout_logprobs) == 0
    assert (row.trajectory_text, row.trajectory_correct) == ("1+1=2", True)


def test_a_rollout_that_is_trained_on_is_its_own_trajectory(tmp_path):
    y_o = rollout()
    t = Trajectory(
        prompt=y_o.prompt, rollout=y_o, refinement=None, source=TrajectorySource.ROLLOUT,
        token_ids=y_o.completion.token_ids, text=y_o.completion.text, grade=y_o.grade,
        policy_version_min=3, policy_version_max=4,
        teacher_context=TeacherContext.PROMPT, teacher_context_ids=ints(5, 6),
        outcome=Outcome.CONSUMED, reason=RejectReason.NONE,
    )  # fmt: skip
    write_trajectories(tmp_path, [t], learner_step=1)
    (row,) = read_trajectories(tmp_path)
    assert (row.trajectory_text, row.trajectory_correct, row.trajectory_first_wrong_step) == (
        "1+1=3",
        False,
        0,
    )
    assert row.trajectory_token_ids.tolist() == row.rollout_token_ids.tolist()


def test_steps_are_chosen_and_ordered(tmp_path):
    for step in (10, 2, 1_000_000):
        write_trajectories(tmp_path, [consumed()], learner_step=step)
    (tmp_path / ".step_000003.parquet.tmp").write_text("half")
    assert logged_steps(tmp_path) == (2, 10, 1_000_000)
    assert [row.learner_step for row in read_trajectories(tmp_path)] == [2, 10, 1_000_000]
    assert [row.learner_step for row in read_trajectories(tmp_path, steps={10})] == [10]
    with pytest.raises(DataError, match="step 3"):
        list(read_trajectories(tmp_path, steps=[3]))
    assert logged_steps(tmp_path / "none") == ()


def test_writing_a_step_again_replaces_it_and_no_rows_are_fine(tmp_path):
    write_trajectories(tmp_path, [consumed(), rejected()], learner_step=1)
    write_trajectories(tmp_path, [], learner_step=1)
    assert list(read_trajectories(tmp_path)) == []


def test_a_file_without_a_column_is_named(tmp_path):
    path = write_trajectories(tmp_path, [consumed()], learner_step=1)
    pq.write_table(pq.read_table(path).drop_columns(["reason"]), path)
    with pytest.raises(DataError, match=r"step_000001.parquet[\s\S]*expected: reason"):
        list(read_trajectories(tmp_path))


def test_what_the_learner_found_at_each_token_comes_back(tmp_path):
    values = TokenValues(
        divergence=np.array([0.5, 0.25], dtype=np.float16),
        student_logprobs=np.array([-1.0, -0.125], dtype=np.float16),
    )
    write_trajectories(tmp_path, [consumed(), rejected()], learner_step=1)
    assert [row.trajectory_divergence for row in read_trajectories(tmp_path)] == [None, None]
    path = write_trajectories(tmp_path, [consumed(), rejected()], learner_step=1, token_values=[values, None])
    good, bad = read_trajectories(tmp_path)
    assert good.trajectory_divergence.tolist() == [0.5, 0.25]
    assert good.trajectory_student_logprobs.tolist() == [-1.0, -0.125]
    assert good.trajectory_divergence.dtype == np.float16
    assert (bad.trajectory_divergence, bad.trajectory_student_logprobs) == (None, None)
    # Files of a version that did not record them can still be read.
    table = pq.read_table(path).drop_columns(["trajectory_divergence", "trajectory_student_logprobs"])
    pq.write_table(table, path)
    assert [row.trajectory_divergence for row in read_trajectories(tmp_path)] == [None, None]


def test_a_torn_file_is_named(tmp_path):
    path = write_trajectories(tmp_path, [consumed()], learner_step=1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=path.name):
        list(read_trajectories(tmp_path))


def test_a_relative_folder_with_a_colon_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_trajectories(Path("lr:1e-4/trajectories"), [consumed()], learner_step=1)
    assert len(list(read_trajectories(Path("lr:1e-4/trajectories")))) == 1
