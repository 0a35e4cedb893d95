from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from trd_ray.activity_records import ActivityLap, ActorState, DepthLap, RoleLap, Tally
from trd_ray.errors import DataError
from trd_ray.evaluation import GradedSample, summarise
from trd_ray.json_lines import JsonLinesWriter, read_lines
from trd_ray.metrics import MetricsWriter, StepMetrics, read_evals, read_metrics, step_metrics
from trd_ray.observer import Observers
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.roles import Role
from trd_ray.run_folder import RunFolder
from trd_ray.stage_clock import Stage, StageTimes
from trd_ray.types import (
    Completion,
    Grade,
    LearnerStep,
    Problem,
    Prompt,
    Refinement,
    RefinePrompt,
    Rollout,
    StopReason,
    SyncReport,
    TeacherContext,
    Trajectory,
    TrajectorySource,
)

KEYS = [
    "learner_step",
    "policy_version",
    "loss",
    "grad_norm",
    "learning_rate",
    "num_loss_tokens",
    "staleness_max",
    "rollout_accuracy",
    "refined_accuracy",
    "trajectory_accuracy",
    "refinement_accepted",
    "refinement_refused_by_reason",
    "flips_wrong_to_right",
    "flips_right_to_wrong",
    "edit_distance_mean",
    "length_ratio_mean",
    "support_mean",
    "kept_share_mean",
    "num_trajectories",
    "num_consumed",
    "num_rejected",
    "rejected_by_reason",
    "rollout_s",
    "refine_s",
    "score_s",
    "learn_s",
    "sync_s",
    "other_s",
    "step_s",
    "num_rollout_tokens",
    "num_refined_tokens",
    "rollout_length_mean",
    "refined_length_mean",
    "num_generated_tokens",
    "tokens_per_s",
    "prompts_in",
    "prompts_pending",
]

TIMES = StageTimes(
    shares={Stage.ROLLOUT: 1.0, Stage.REFINE: 2.0, Stage.SCORE: 0.5, Stage.LEARN: 1.0, Stage.SYNC: 0.25},
    other_s=0.25,
    step_s=5.0,
)


def completion(num_tokens: int, *, version: int = 0) -> Completion:
    return Completion(
        token_ids=np.arange(num_tokens, dtype=np.int32), logprobs=np.zeros(num_tokens, dtype=np.float32),
        text="text", stop_reason=StopReason.STOP, policy_version_min=version, policy_version_max=version,
    )  # fmt: skip


def trajectory(
    right: bool, refined_right: bool | None, *, tokens: int, refined_tokens: int = 0, version: int = 4,
    reason: RejectReason = RejectReason.NONE,
) -> Trajectory:  # fmt: skip
    problem = Problem(prompt_id="p", problem="1+1", answer="2")
    prompt = Prompt(problem=problem, epoch=0, sample_index=0, token_ids=np.zeros(3, dtype=np.int32), seed=0)
    rollout = Rollout(
        prompt=prompt, completion=completion(tokens, version=version), grade=Grade(correct=right, answer=None)
    )
    refinement = None
    if refined_right is not None:
        context = RefinePrompt(
            token_ids=np.zeros(5, dtype=np.int32), num_cut_rollout_tokens=0, num_cut_reference_tokens=0
        )
        refinement = Refinement(
            prompt=context,
            completion=completion(refined_tokens),
            grade=Grade(correct=refined_right, answer=None),
        )
    return Trajectory(
        prompt=prompt, rollout=rollout, refinement=refinement, text="text",
        grade=rollout.grade if refinement is None else refinement.grade,
        policy_version_min=version, policy_version_max=version,
        source=TrajectorySource.ROLLOUT if refinement is None else TrajectorySource.REFINED,
        token_ids=rollout.completion.token_ids, teacher_context=TeacherContext.PROMPT,
        teacher_context_ids=prompt.token_ids, reason=reason,
        outcome=Outcome.CONSUMED if reason is RejectReason.NONE else Outcome.REJECTED,
    )  # fmt: skip


def learner_step(loss: float = 0.5) -> LearnerStep:
    return LearnerStep(
        learner_step=5, policy_version=5, loss=loss, grad_norm=1.5, learning_rate=1e-3, num_loss_tokens=40,
        student_logprob_mean=-0.5, learn_s=1.0,
    )  # fmt: skip


def sync(version: int = 5) -> SyncReport:
    return SyncReport(policy_version=version, num_parameters=1, num_bytes=4, checksum="c", sync_s=0.25)


def reduce(trajectories: list[Trajectory], *, loss: float = 0.5, pending: int = 0) -> StepMetrics:
    return step_metrics(
        trajectories, step=learner_step(loss), sync=sync(), times=TIMES, staleness_max=1,
        prompts_in=len(trajectories) + pending, prompts_pending=pending,
    )  # fmt: skip


FIVE = [
    trajectory(False, True, tokens=10, refined_tokens=6),
    trajectory(False, True, tokens=20, refined_tokens=8, version=3),
    trajectory(True, False, tokens=6, refined_tokens=4),
    trajectory(True, True, tokens=4, refined_tokens=4, version=1, reason=RejectReason.REFINE_TRUNCATED),
    trajectory(False, None, tokens=10, reason=RejectReason.PROMPT_TOO_LONG),
]


def test_one_step_by_hand():
    m = reduce(FIVE, pending=2)
    assert (m.rollout_accuracy, m.refined_accuracy) == (2 / 5, 3 / 4)
    assert (m.flips_wrong_to_right, m.flips_right_to_wrong) == (2, 1)
    assert (m.num_trajectories, m.num_consumed, m.num_rejected) == (5, 3, 2)
    assert m.rejected_by_reason == {"prompt_too_long": 1, "refine_truncated": 1}
    # Version 4 met the first of them, so the oldest consumed one (version 3) was one step stale;
    # the rejected one of version 1 does not count.
    assert m.staleness_max == 1
    assert (m.num_rollout_tokens, m.num_refined_tokens) == (50, 22)
    assert (m.rollout_length_mean, m.refined_length_mean) == (10.0, 5.5)
    assert m.tokens_per_s == 72 / 5.0
    assert (m.prompts_in, m.prompts_pending) == (7, 2)
    stages = (m.rollout_s, m.refine_s, m.score_s, m.learn_s, m.sync_s, m.other_s)
    assert stages == (1.0, 2.0, 0.5, 1.0, 0.25, 0.25)
    assert math.fsum(stages) == m.step_s


def test_a_method_that_does_not_refine_has_null_and_not_zero():
    row = reduce([trajectory(True, None, tokens=4)]).to_json()
    assert row["refined_accuracy"] is None
    assert row["refined_length_mean"] is None
    assert (row["num_refined_tokens"], row["flips_wrong_to_right"]) == (0, 0)


def test_the_keys_are_those_of_the_contract():
    assert list(reduce(FIVE).to_json()) == KEYS


def lap(*roles: Role) -> ActivityLap:
    """Each actor busy for 1 s, held for 2 s, idle for 1.5 s and down for 0.5 s."""
    of_role = RoleLap(
        num_actors=2, busy_s=1.0, waiting_s=2.0, idle_s=1.5, down_s=0.5, busy_by_stage_s={}, num_restarts=1,
        queue=DepthLap(mean=0.5, max=7),
    )  # fmt: skip
    return ActivityLap(
        learner_step=5, step_s=5.0, roles=dict.fromkeys(roles, of_role), buffer=DepthLap(mean=3.5, max=8),
        in_flight=DepthLap(mean=12.0, max=16),
        counts={Tally.STALE_DROPPED: 4, Tally.REFRESHED: 5, Tally.RETRY: 6},
    )  # fmt: skip


def watched(*roles: Role) -> StepMetrics:
    return step_metrics(
        FIVE, step=learner_step(), sync=sync(), times=TIMES, staleness_max=1, prompts_in=5,
        activity=lap(*roles),
    )  # fmt: skip


def test_a_watched_run_has_each_roles_time_beside_the_other_keys():
    row = watched(Role.GENERATOR, Role.LEARNER).to_json()
    assert list(row)[: len(KEYS)] == KEYS
    assert "runtime" not in row
    names = ("busy", "waiting", "idle", "down")
    assert [row[f"generator_{name}_s"] for name in names] == [1.0, 2.0, 1.5, 0.5]
    assert sum(row[f"generator_{name}_s"] for name in names) == row["step_s"]
    assert (row["generator_queue_mean"], row["generator_queue_max"]) == (0.5, 7)
    assert (row["teacher_busy_s"], row["num_restarts_teacher"]) == (None, None)
    assert (row["learner_waiting_s"], row["num_restarts_learner"]) == (2.0, 1)
    assert (row["buffer_depth_mean"], row["buffer_depth_max"]) == (3.5, 8)
    assert (row["in_flight_mean"], row["in_flight_max"]) == (12.0, 16)
    assert (row["num_stale_dropped"], row["num_refreshed"], row["num_retries"]) == (4, 5, 6)


def test_rows_of_watched_and_of_older_runs_come_back():
    m = watched(Role.GENERATOR, Role.TEACHER, Role.LEARNER)
    row = m.to_json()
    assert StepMetrics.from_line(json.dumps(row)) == m
    assert m.runtime.share(Role.TEACHER, ActorState.WAITING) == 0.4
    assert StepMetrics.from_line(json.dumps({key: row[key] for key in KEYS})).runtime is None
    del row["num_retries"]
    assert StepMetrics.from_line(json.dumps(row)).runtime == dataclasses.replace(m.runtime, num_retries=None)


def test_broken_identities_are_refused():
    m = reduce(FIVE)
    with pytest.raises(ValueError, match="lost or counted twice"):
        dataclasses.replace(m, prompts_in=6)
    with pytest.raises(ValueError, match="num_consumed"):
        dataclasses.replace(m, num_consumed=4)
    with pytest.raises(ValueError, match="reasons add up"):
        dataclasses.replace(m, rejected_by_reason={})
    with pytest.raises(ValueError, match="version 4 were pushed"):
        step_metrics(FIVE, step=learner_step(), sync=sync(4), times=TIMES, staleness_max=0, prompts_in=5)
    with pytest.raises(ValueError, match="no trajectories"):
        step_metrics([], step=learner_step(), sync=sync(), times=TIMES, staleness_max=0, prompts_in=0)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_files_parse_strictly_and_come_back(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    good, bad = reduce(FIVE), dataclasses.replace(reduce(FIVE, loss=math.nan), grad_norm=math.inf)
    samples = [GradedSample(prompt_id=str(i), correct=i > 1, num_tokens=3, truncated=False) for i in range(4)]
    report = summarise(samples, learner_step=0, dataset="held_out")
    with MetricsWriter(folder) as writer:
        observers = Observers([writer])
        observers.on_eval(report)
        observers.on_stage("rollout", 1, 2)
        observers.on_step(good)
        assert read_metrics(folder.metrics) == (good,)  # flushed while the file is open
        observers.on_step(bad)
    rows = [json.loads(line, parse_constant=refuse) for line in folder.metrics.read_text().splitlines()]
    assert (rows[1]["loss"], rows[1]["grad_norm"]) == (None, None)
    assert math.isnan(read_metrics(folder.metrics)[1].loss)
    assert read_evals(folder.eval) == (report,)


def test_a_line_may_be_torn_anywhere_also_within_a_letter(tmp_path):
    path = tmp_path / "eval.jsonl"
    with JsonLinesWriter(path) as writer:
        for _ in range(2):
            writer.write({"dataset": "Prüfung/数学.jsonl"})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        assert [json.loads(line)["dataset"] for line in read_lines(path)] == ["Prüfung/数学.jsonl"]


@pytest.mark.parametrize("line", [b"[]", b"1", b"{", b"\xff\xfe"], ids=repr)
@pytest.mark.parametrize("read", [read_metrics, read_evals])
def test_a_line_that_is_no_row_is_named(tmp_path, read, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(DataError, match="cannot be read"):
        read(path)
    path.write_bytes(b"\n" + line)  # never finished
    assert read(path) == ()


def test_a_row_of_another_kind_is_no_evaluation(tmp_path):
    (tmp_path / "eval.jsonl").write_text('{"learner_step": 3}\n')
    with pytest.raises(DataError, match=r"(?s)does not fit.*learner_step 3.*ci95"):
        read_evals(tmp_path / "eval.jsonl")


def test_a_torn_last_line_is_not_read_and_a_missing_key_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLinesWriter(path) as writer:
        writer.write(reduce(FIVE).to_json())
    whole = path.read_text()
    path.write_text(whole + whole[: len(whole) // 2])
    assert len(read_metrics(path)) == 1
    assert read_lines(tmp_path / "none.jsonl") == []
    row = json.loads(whole)
    del row["grad_norm"]
    with pytest.raises(DataError, match="grad_norm"):
        StepMetrics.from_line(json.dumps(row))
    assert StepMetrics.from_line(json.dumps(json.loads(whole) | {"from_a_later_version": 1})) == reduce(FIVE)
