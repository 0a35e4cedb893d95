"""What is recorded of each learner step: one line of metrics.jsonl; `trd_ray.scalars` names its numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self

from trd_ray.activity_records import ActivityLap
from trd_ray.errors import DataError, describe
from trd_ray.evaluation import EvalReport
from trd_ray.json_lines import JsonLinesWriter, read_lines, read_record
from trd_ray.outcomes import Outcome
from trd_ray.run_folder import RunFolder
from trd_ray.runtime_metrics import RuntimeMetrics
from trd_ray.stage_clock import Stage, StageTimes
from trd_ray.trajectory_metrics import (
    edit_distance_mean,
    kept_share_mean,
    length_ratio_mean,
    mean_of,
    num_accepted,
    num_generated_tokens,
    refused_by_reason,
    support_mean,
)
from trd_ray.types import LearnerStep, Refinement, SyncReport, Trajectory


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One learner step. Field names are the keys of metrics.jsonl, in this order."""

    learner_step: int
    """From 1."""
    policy_version: int
    """Completed optimizer steps after this one."""
    loss: float
    """The objective, in nats a token; NaN where the file has null."""
    grad_norm: float
    """Global L2 norm before clipping."""
    learning_rate: float
    """Of this step."""
    num_loss_tokens: int
    """Response tokens that were trained on."""
    staleness_max: int
    """Largest staleness among the consumed trajectories, in steps; 0 if none was consumed."""
    rollout_accuracy: float | None
    """Share of right rollouts, rejected trajectories included; None if the student answered nothing."""
    refined_accuracy: float | None
    """Share of right refinements; None if nothing was refined."""
    trajectory_accuracy: float | None
    """Share of right ones among the trajectories that were trained on; None if there is none."""
    refinement_accepted: int
    """Refinements that were trained on."""
    refinement_refused_by_reason: Mapping[str, int]
    """Refinements that were broken or that the gate refused, whatever was trained on instead."""
    flips_wrong_to_right: int
    """Wrong rollouts whose refinement is right."""
    flips_right_to_wrong: int
    """Right rollouts whose refinement is wrong."""
    edit_distance_mean: float | None
    """Token edits from rollout to refinement over the longer one's length, in [0, 1]; mean over
    refinements."""
    length_ratio_mean: float | None
    """Tokens of the refinement over tokens of its rollout; mean over refinements."""
    support_mean: float | None
    """Student logprob of the trajectories less that of their rollouts, in nats a token; mean over those
    trained on. None unless all have a rollout."""
    kept_share_mean: float | None
    """Share of a spliced or speculative trajectory's tokens that the student made; mean over those
    trained on, None for other methods."""
    num_trajectories: int
    """Trajectories that ended in this step: consumed and rejected."""
    num_consumed: int
    """Trajectories that were trained on."""
    num_rejected: int
    """Trajectories that ended otherwise."""
    rejected_by_reason: Mapping[str, int]
    """Reasons that occurred only."""
    rollout_s: float
    """Exclusive share of the step's wall time (see `stage_clock`) that went into rollouts."""
    refine_s: float
    """Likewise into refinements."""
    score_s: float
    """Likewise into scores of the teacher."""
    learn_s: float
    """Likewise into the optimizer step."""
    sync_s: float
    """Likewise into the push of weights."""
    other_s: float
    """What none of the five had."""
    step_s: float
    """The whole step; the sum of the six above."""
    num_rollout_tokens: int
    """Of all rollouts."""
    num_refined_tokens: int
    """Of all refinements; of a spliced trajectory, those that the teacher added."""
    rollout_length_mean: float | None
    """Tokens a rollout; None if the student answered nothing."""
    refined_length_mean: float | None
    """Tokens a refinement; None if nothing was refined."""
    num_generated_tokens: int
    """Rollouts, refinements, and whatever else the student or the teacher wrote."""
    tokens_per_s: float
    """Generated tokens per second of the whole step; of a replay, which generates none, loss tokens."""
    prompts_in: int
    """Prompts in the pipeline during the step: left pending by the one before, and new ones."""
    prompts_pending: int
    """Prompts that have not ended at the end of the step."""
    runtime: RuntimeMetrics | None = None
    """Its fields stand in the row beside the others; None if the run was not watched."""

    def __post_init__(self) -> None:
        if self.num_trajectories != self.num_consumed + self.num_rejected:
            raise ValueError(
                f"StepMetrics: num_trajectories {self.num_trajectories} is not num_consumed "
                f"{self.num_consumed} + num_rejected {self.num_rejected}"
            )
        if self.num_rejected != sum(self.rejected_by_reason.values()):
            raise ValueError(
                f"StepMetrics: num_rejected {self.num_rejected}, but reasons add up to "
                f"{dict(self.rejected_by_reason)}"
            )
        if self.prompts_in != self.num_trajectories + self.prompts_pending:
            raise ValueError(
                f"StepMetrics: prompts_in {self.prompts_in} is not consumed {self.num_consumed} + rejected "
                f"{self.num_rejected} + pending {self.prompts_pending}; a prompt was lost or counted twice"
            )

    def to_json(self) -> dict[str, object]:
        row = asdict(self)
        return row | (row.pop("runtime") or {})

    @classmethod
    def from_line(cls, line: str) -> StepMetrics:
        """Read a row. Keys that it does not know are left out; `DataError` names one that is missing."""
        row = read_record(line, file="metrics.jsonl")
        names = [field.name for field in fields(cls) if field.name != "runtime"]
        missing = [name for name in names if name not in row]
        if missing:
            raise DataError(
                describe(
                    "a row of metrics.jsonl lacks a key", where=f"learner_step {row.get('learner_step')}",
                    got=", ".join(sorted(row)), expected=", ".join(missing),
                    remedy="use a run folder that was written by this version",
                )
            )  # fmt: skip
        known = {name: row[name] for name in names}
        for field in fields(cls):
            if field.type == "float" and known[field.name] is None:
                known[field.name] = math.nan
        return cls(**known, runtime=RuntimeMetrics.from_row(row))


def read_metrics(path: Path) -> tuple[StepMetrics, ...]:
    """All whole rows of a metrics.jsonl, in its order; () if there is no file."""
    return tuple(StepMetrics.from_line(line) for line in read_lines(path))


def read_evals(path: Path) -> tuple[EvalReport, ...]:
    """All whole rows of an eval.jsonl, in its order; () if there is no file."""
    return tuple(EvalReport.from_line(line) for line in read_lines(path))


def step_metrics(
    trajectories: Sequence[Trajectory],
    *,
    step: LearnerStep,
    sync: SyncReport,
    times: StageTimes,
    staleness_max: int,
    prompts_in: int,
    prompts_pending: int = 0,
    activity: ActivityLap | None = None,
) -> StepMetrics:
    """Reduce one step. `trajectories` are all that ended in it, consumed and rejected.

    Staleness is that at consumption: the learner had completed `step.policy_version - 1` steps
    then. `ValueError` if the push carried another version than the learner made, or if there is
    no trajectory.
    """
    _require_one_step(trajectories, step=step, sync=sync)
    consumed = [t for t in trajectories if t.outcome is Outcome.CONSUMED]
    reasons = Counter(str(t.reason) for t in trajectories if t.outcome is Outcome.REJECTED)
    rollouts = [t.rollout for t in trajectories if t.rollout is not None]
    refined = _refined(trajectories)
    num_rollout_tokens = sum(len(r.completion.token_ids) for r in rollouts)
    num_refined_tokens = sum(len(r.completion.token_ids) for _, r in refined)
    num_generated = num_generated_tokens(trajectories)
    return StepMetrics(
        learner_step=step.learner_step,
        policy_version=step.policy_version,
        loss=step.loss,
        grad_norm=step.grad_norm,
        learning_rate=step.learning_rate,
        num_loss_tokens=step.num_loss_tokens,
        staleness_max=staleness_max,
        rollout_accuracy=mean_of([float(r.grade.correct) for r in rollouts]),
        refined_accuracy=mean_of([float(r.grade.correct) for _, r in refined]),
        trajectory_accuracy=mean_of([float(t.grade.correct) for t in consumed if t.grade is not None]),
        refinement_accepted=num_accepted(consumed),
        refinement_refused_by_reason=refused_by_reason(trajectories),
        flips_wrong_to_right=sum(not before and r.grade.correct for before, r in refined),
        flips_right_to_wrong=sum(before and not r.grade.correct for before, r in refined),
        edit_distance_mean=edit_distance_mean(trajectories),
        length_ratio_mean=length_ratio_mean(trajectories),
        support_mean=support_mean(consumed, student_logprob_mean=step.student_logprob_mean),
        kept_share_mean=kept_share_mean(consumed),
        num_trajectories=len(trajectories),
        num_consumed=len(consumed),
        num_rejected=len(trajectories) - len(consumed),
        rejected_by_reason=dict(sorted(reasons.items())),
        rollout_s=times.share_s(Stage.ROLLOUT),
        refine_s=times.share_s(Stage.REFINE),
        score_s=times.share_s(Stage.SCORE),
        learn_s=times.share_s(Stage.LEARN),
        sync_s=times.share_s(Stage.SYNC),
        other_s=times.other_s,
        step_s=times.step_s,
        num_rollout_tokens=num_rollout_tokens,
        num_refined_tokens=num_refined_tokens,
        rollout_length_mean=num_rollout_tokens / len(rollouts) if rollouts else None,
        refined_length_mean=num_refined_tokens / len(refined) if refined else None,
        num_generated_tokens=num_generated,
        tokens_per_s=num_generated / times.step_s if times.step_s > 0 else 0.0,
        prompts_in=prompts_in,
        prompts_pending=prompts_pending,
        runtime=RuntimeMetrics.from_lap(activity) if activity is not None else None,
    )


def _require_one_step(trajectories: Sequence[Trajectory], *, step: LearnerStep, sync: SyncReport) -> None:
    if not trajectories:
        raise ValueError(f"step_metrics: learner_step {step.learner_step} has no trajectories; expected some")
    if sync.policy_version != step.policy_version:
        raise ValueError(
            f"step_metrics: weights of version {sync.policy_version} were pushed after a step that made "
            f"version {step.policy_version}"
        )


def _refined(trajectories: Sequence[Trajectory]) -> list[tuple[bool, Refinement]]:
    """Whether the rollout was right, and its refinement, where there are both."""
    return [
        (t.rollout.grade.correct, t.refinement)
        for t in trajectories
        if t.refinement is not None and t.rollout is not None
    ]


class MetricsWriter:
    """Writes metrics.jsonl and eval.jsonl. An `Observer`; close it at the end.

    On resume call `RunFolder.rewind` first.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._steps = JsonLinesWriter(folder.metrics)
        self._evals = JsonLinesWriter(folder.eval)

    def on_stage(self, stage: str, done: int, total: int) -> None:
        """Nothing is recorded within a step."""

    def on_step(self, metrics: StepMetrics) -> None:
        self._steps.write(metrics.to_json())

    def on_eval(self, report: EvalReport) -> None:
        self._evals.write(report.to_json())

    def close(self) -> None:
        """May be called more than once."""
        self._steps.close()
        self._evals.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
