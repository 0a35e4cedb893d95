"""A replay on a scripted learner: the batches of the run, its losses, its end; and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import HIDDEN_WIDTH, FakeLearner, RecordingObserver
from tests.unit.record_strategies import same
from tests.unit.trajectory_records import ints, refined, trajectory
from trd_ray.buffer_log import BufferLog
from trd_ray.errors import ConfigError, DataError
from trd_ray.metrics import MetricsWriter, read_metrics, step_metrics
from trd_ray.outcomes import RejectReason
from trd_ray.replay import LossDifference, Replay, ReplayResult, write_summary
from trd_ray.replay_plan import ReplayPlan, plan_replay
from trd_ray.run_folder import RunFolder
from trd_ray.stage_clock import StageClock
from trd_ray.step_batch import step_batch
from trd_ray.types import (
    DeferredTarget,
    LearnerStep,
    SyncReport,
    TeacherHidden,
    TopKTargets,
    Trajectory,
)

NUM_STEPS = 3


def scored(text: str) -> Trajectory:
    hidden = np.full((len(text), HIDDEN_WIDTH), float(len(text)), dtype=np.float32)
    return dataclasses.replace(refined("wrong", text), target=TeacherHidden(hidden=hidden))


def step_of(step: int) -> tuple[Trajectory, ...]:
    """Two that are trained on, and a rejected one between them."""
    refused = refined("ab", "cd", gate_reason=RejectReason.REFINEMENT_WRONG)
    return scored("x" * step), refused, scored("right")


def make_run(path: Path, *overrides: str, num_steps: int = NUM_STEPS, log: bool = True) -> RunFolder:
    """The folder of a run of which a fake learner made the losses: its number of loss tokens."""
    folder = RunFolder.create(path)
    # A few keys are read in a tenth of the time of all.
    options = [f"run.dir={path}", f"run.num_steps={num_steps}", *overrides]
    folder.config.write_text("".join(option.replace("=", ": ", 1) + "\n" for option in options))
    with MetricsWriter(folder) as writer:
        for step in range(1, num_steps + 1):
            trajectories = step_of(step)
            if log:
                BufferLog(str(folder.buffer_log)).write_step(trajectories, learner_step=step)
            learned = LearnerStep(
                learner_step=step, policy_version=step, loss=float(step + 5), grad_norm=1.0,
                learning_rate=0.1, num_loss_tokens=step + 5, student_logprob_mean=None, learn_s=0.0,
            )  # fmt: skip
            pushed = SyncReport(
                policy_version=step, num_parameters=1, num_bytes=4, checksum="0" * 64, sync_s=0.0
            )
            metrics = step_metrics(
                trajectories, step=learned, sync=pushed, times=StageClock().lap(), staleness_max=0,
                prompts_in=len(trajectories),
            )  # fmt: skip
            writer.on_step(metrics)
    return folder


def plan_of(tmp_path: Path, *overrides: str) -> ReplayPlan:
    return plan_replay(tmp_path / "run", [f"run.dir={tmp_path / 'replay'}", *overrides])


def start_of(plan: ReplayPlan, learner: FakeLearner) -> tuple[Replay, RunFolder, RecordingObserver]:
    folder, observer = RunFolder.create(plan.config.run.dir), RecordingObserver()
    return Replay(plan, learner=learner, folder=folder, observer=observer), folder, observer


async def test_the_learner_gets_the_batches_of_the_run(tmp_path: Path):
    make_run(tmp_path / "run")
    plan, learner = plan_of(tmp_path), FakeLearner()
    replay, _, _ = start_of(plan, learner)
    result = await replay.run()
    expected = [
        step_batch(
            [step_of(step)[0], step_of(step)[2]], learner_step=step, method=plan.config.method,
            learner=plan.config.learner,
        )
        for step in (1, 2, 3)
    ]  # fmt: skip
    assert [b.learner_step for b in learner.batches] == [1, 2, 3]
    for batch, want in zip(learner.batches, expected, strict=True):
        assert batch.num_loss_tokens == want.num_loss_tokens
        samples, wanted = batch.micro_batches[0][0], want.micro_batches[0][0]
        assert all(same(a, b) for a, b in zip(samples, wanted, strict=True))
    assert (result.learner_step, result.interrupted) == (3, False)
    assert result.largest is not None and result.largest.relative == 0.0


async def test_the_largest_difference_of_the_losses_is_found(tmp_path: Path):
    make_run(tmp_path / "run")

    class Astray(FakeLearner):
        async def learn(self, batch):
            learned = await super().learn(batch)
            return dataclasses.replace(
                learned, loss=learned.loss * (1.25 if batch.learner_step == 2 else 1.01)
            )

    replay, _, _ = start_of(plan_of(tmp_path), Astray())
    result = await replay.run()
    # 7 against 8.75: 1.75 / 8.75.
    assert result.largest is not None and result.largest.learner_step == 2
    assert result.largest.relative == pytest.approx(0.2)
    assert result.last is not None and result.last.learner_step == 3


@pytest.mark.parametrize(
    ("loss", "run_loss", "relative"),
    [(1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (-1.0, 1.0, 2.0), (0.0, 0.5, 1.0), (math.nan, math.nan, 0.0),
     (math.nan, 1.0, math.inf), (1.0, math.nan, math.inf)],
)  # fmt: skip
def test_relative_difference(loss: float, run_loss: float, relative: float):
    assert LossDifference(learner_step=1, loss=loss, run_loss=run_loss).relative == relative


async def test_metrics_are_those_of_the_trajectories_and_staleness_is_kept(tmp_path: Path):
    run = make_run(tmp_path / "run")
    replay, _, observer = start_of(plan_of(tmp_path), FakeLearner())
    await replay.run()
    for ours, theirs in zip(observer.steps, read_metrics(run.metrics), strict=True):
        for name in ("rollout_accuracy", "refined_accuracy", "num_rejected", "rejected_by_reason", "loss"):
            assert getattr(ours, name) == getattr(theirs, name)
        # Made by the first weights, and consumed at each later step.
        assert ours.staleness_max == ours.learner_step - 1
        assert ours.rollout_s == ours.refine_s == ours.sync_s == 0.0
        assert ours.tokens_per_s == pytest.approx(ours.num_loss_tokens / ours.step_s)


@pytest.mark.parametrize(("every", "steps"), [(0, [3]), (1, [1, 2, 3]), (2, [2, 3]), (3, [3])])
async def test_checkpoints_are_written_as_often_as_asked_and_at_the_end(tmp_path: Path, every: int, steps):
    make_run(tmp_path / "run")
    plan = plan_of(tmp_path, f"run.checkpoint_every={every}", "run.keep_checkpoints=9")
    replay, folder, _ = start_of(plan, FakeLearner())
    await replay.run()
    assert [c.learner_step for c in folder.complete_checkpoints()] == steps


async def test_a_stop_ends_it_after_the_step_in_hand_with_a_checkpoint(tmp_path: Path):
    make_run(tmp_path / "run")
    learner = FakeLearner()
    replay, folder, observer = start_of(plan_of(tmp_path), learner)
    learner.during_learn = replay.request_stop
    result = await replay.run()
    assert (result.learner_step, result.interrupted) == (1, True)
    assert len(observer.steps) == 1
    assert [c.learner_step for c in folder.complete_checkpoints()] == [1]


async def test_a_stop_before_the_first_step_writes_nothing(tmp_path: Path):
    make_run(tmp_path / "run")
    replay, folder, _ = start_of(plan_of(tmp_path), FakeLearner())
    replay.request_stop()
    result = await replay.run()
    assert (result.learner_step, result.interrupted, result.largest) == (0, True, None)
    assert folder.complete_checkpoints() == ()


async def test_a_segment_that_is_damaged_midway_is_named(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run.buffer_log / "step_000002.parquet").write_bytes(b"torn")
    replay, _, observer = start_of(plan_of(tmp_path), FakeLearner())
    with pytest.raises(DataError, match="step_000002"):
        await replay.run()
    assert len(observer.steps) == 1


def test_only_steps_that_the_run_completed_are_replayed(tmp_path: Path):
    run = make_run(tmp_path / "run")
    # Killed between the segment and the step.
    BufferLog(str(run.buffer_log)).write_step(step_of(4), learner_step=4)
    assert plan_of(tmp_path).num_steps == 3
    assert plan_of(tmp_path, "run.num_steps=2").num_steps == 2
    assert plan_of(tmp_path, "run.num_steps=9").num_steps == 3


def test_a_replay_keeps_no_log_and_leaves_that_of_the_run(tmp_path: Path):
    run = make_run(tmp_path / "run")
    plan = plan_of(tmp_path)
    assert not plan.config.pipeline.log_targets
    assert plan.log.url == str(run.buffer_log)


def test_a_log_that_was_moved_is_found_by_its_url(tmp_path: Path):
    run = make_run(tmp_path / "run")
    run.buffer_log.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="no segment of step 1"):
        plan_of(tmp_path)
    assert plan_of(tmp_path, f"pipeline.log_url={tmp_path / 'moved'}").num_steps == 3


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("learner.optimizer.learning_rate=0.5", True),
        ("method.divergence=reverse_kl", True),
        ("method.clip=token", True),
        ("run.seed=7", True),
        ("run.num_steps=2", True),
        ("learner.threads=1", False),
        ("learner.micro_batch_tokens=100", False),
        ("run.checkpoint_every=1", False),
        ("ray.num_cpus=2", False),
    ],
)
def test_what_changes_the_losses_is_told_from_what_does_not(tmp_path: Path, override: str, changed: bool):
    make_run(tmp_path / "run")
    named = plan_of(tmp_path, override).changed
    assert [words.partition(":")[0] for words in named] == ([override.partition("=")[0]] if changed else [])


@pytest.mark.parametrize(
    "override",
    ["data.train=other.jsonl", "generator.sampling.temperature=0.5", "method.trajectory=rollout",
     "teacher.model=other", "pipeline.prompts_per_step=1", "method.refine_gate.kind=failed_only"],
)  # fmt: skip
def test_what_made_the_trajectories_cannot_change(tmp_path: Path, override: str):
    make_run(tmp_path / "run")
    extra = ["method.teacher_context=prompt"] if "trajectory" in override else []
    with pytest.raises(ConfigError, match=override.partition("=")[0].replace(".", r"\.")):
        plan_of(tmp_path, override, *extra)


def test_a_loss_whose_targets_are_not_in_the_log_is_refused(tmp_path: Path):
    make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"(?s)the log does not hold.*TeacherHidden; expected no target"):
        plan_of(tmp_path, "method.divergence=nll")


@pytest.mark.parametrize(
    ("overrides", "target", "wanted"),
    [
        (
            ["method.support=top_k", "method.top_k=2", "teacher.score=fused"],
            TopKTargets(
                topk_ids=np.zeros((5, 2), np.int32), topk_logprobs=np.zeros((5, 2), np.float16),
                token_logprobs=np.zeros(5, np.float32),
            ),
            "method.top_k=3",
        ),
        (["teacher.score=learner"], DeferredTarget(context_ids=ints(1)), None),
    ],
)  # fmt: skip
def test_each_kind_of_target_is_checked_before_the_start(tmp_path: Path, overrides, target, wanted):
    run = make_run(tmp_path / "run", *overrides, num_steps=1)
    record = dataclasses.replace(refined("wrong", "right"), target=target)
    BufferLog(str(run.buffer_log)).write_step([record], learner_step=1)
    assert plan_of(tmp_path).num_steps == 1
    if wanted is not None:
        with pytest.raises(ConfigError, match="of K = 3 or more"):
            plan_of(tmp_path, wanted)


def test_a_run_without_a_log_says_so(tmp_path: Path):
    make_run(tmp_path / "run", "pipeline.log_targets=false", log=False)
    with pytest.raises(ConfigError, match=r"(?s)log_targets=false.*remedy:.*log_targets=true"):
        plan_of(tmp_path)


def test_a_gap_in_the_log_is_named(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run.buffer_log / "step_000002.parquet").unlink()
    with pytest.raises(ConfigError, match="no segment of step 2"):
        plan_of(tmp_path)


def test_a_run_without_a_step_is_refused(tmp_path: Path):
    make_run(tmp_path / "run", num_steps=1).metrics.write_text("")
    with pytest.raises(ConfigError, match="no completed step"):
        plan_of(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no run to replay"):
        plan_of(tmp_path)


def test_the_folder_of_the_run_is_not_written_into(tmp_path: Path):
    make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="a folder of its own"):
        plan_replay(tmp_path / "run", [])
    with pytest.raises(ConfigError, match="a folder of its own"):
        plan_replay(tmp_path / "run", [f"run.dir={tmp_path}/x/../run"])
    make_run(tmp_path / "other")
    with pytest.raises(ConfigError, match="already holds a run"):
        plan_replay(tmp_path / "run", [f"run.dir={tmp_path / 'other'}"])


def test_the_summary_is_strict_json_and_marks_the_folder_of_a_replay(tmp_path: Path):
    make_run(tmp_path / "run")
    plan = plan_of(tmp_path, "learner.optimizer.learning_rate=0.5")
    folder = RunFolder.create(tmp_path / "replay")
    difference = LossDifference(learner_step=2, loss=1.0, run_loss=math.nan)
    result = ReplayResult(learner_step=2, interrupted=True, largest=difference, last=difference)
    write_summary(plan, folder, result)
    summary = json.loads(folder.replay.read_text(), parse_constant=pytest.fail)
    assert summary["source"] == str(tmp_path / "run") and summary["replayed_steps"] == 2
    assert summary["largest_difference"] == {
        "learner_step": 2,
        "loss": 1.0,
        "run_loss": None,
        "relative": None,
    }
    folder.config.write_text(f"run.dir: {folder.path}")
    with pytest.raises(ConfigError, match="the folder of a replay"):
        plan_replay(folder.path, [f"run.dir={tmp_path / 'again'}"])


async def test_rollouts_keep_their_logprobs_for_a_clipped_ratio(tmp_path: Path):
    overrides = [
        "method.trajectory=rollout", "method.teacher_context=prompt", "method.divergence=reverse_kl",
        "method.support=sampled", "method.estimator=policy_gradient",
    ]  # fmt: skip
    run = make_run(tmp_path / "run", *overrides, num_steps=1)
    hidden = TeacherHidden(hidden=np.ones((5, HIDDEN_WIDTH), dtype=np.float32))
    record = dataclasses.replace(trajectory(correct=True, text="right"), target=hidden)
    BufferLog(str(run.buffer_log)).write_step([record], learner_step=1)
    learner = FakeLearner()
    replay, _, _ = start_of(plan_of(tmp_path), learner)
    await replay.run()
    (sample,) = learner.batches[0].micro_batches[0][0]
    assert sample.rollout_logprobs is not None and sample.rollout_logprobs.tolist() == [-0.5] * 5
