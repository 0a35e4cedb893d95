"""Writes run folders that look like real ones, through the writers that real runs use.

    python -m tests.unit.report.fake_run FOLDER [--steps N] [--done N] [--method refined|rollout]

makes one to look at.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trd_ray.activity_records import ActivityLap, DepthLap, RoleLap, Tally
from trd_ray.config import LearnerConfig, MethodConfig, OptimizerConfig, PipelineConfig, RunConfig, TrdConfig
from trd_ray.config_loader import dump_config
from trd_ray.evaluation import GradedSample, summarise
from trd_ray.metrics import MetricsWriter, step_metrics
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.report import write_report
from trd_ray.roles import Role
from trd_ray.run_folder import RunFolder
from trd_ray.stage_clock import Stage, StageTimes
from trd_ray.tasks.arithmetic.grader import ArithmeticTask
from trd_ray.tasks.arithmetic.problems import Split, generate_problems, parse_problem, solve
from trd_ray.token_values import TokenValues
from trd_ray.trajectory_log import write_trajectories
from trd_ray.types import (
    Completion,
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

_TASK = ArithmeticTask()


def ids(text: str) -> np.ndarray:
    return np.array([ord(c) % 50 for c in text], dtype=np.int32)


def completion(text: str, *, version: int, stop: StopReason = StopReason.STOP) -> Completion:
    token_ids = ids(text + "$")
    logprobs = np.full(len(token_ids), -0.25, dtype=np.float32)
    return Completion(
        token_ids=token_ids, logprobs=logprobs, text=text, stop_reason=stop,
        policy_version_min=version, policy_version_max=version,
    )  # fmt: skip


def spoil(lines: list[str], rng: random.Random) -> str:
    """A solution that goes wrong at one step and carries the mistake on, or stops too early."""
    if rng.random() < 0.06:
        return "\n".join(lines[: rng.randint(1, len(lines) - 1)])
    at = rng.randrange(len(lines) - 1)
    shift = rng.choice([-10, -1, 1, 2, 10])
    spoiled = lines[:at]
    for i, line in enumerate(lines[at:-1]):
        left, result = line.split("=")
        if i:
            first = left.replace("-", "+", 1).split("+")[0]
            left = str(int(first) + shift) + left[len(first) :]
        spoiled.append(f"{left}={int(result) + shift}")
    return "\n".join([*spoiled, f"#{int(lines[-1][1:]) + shift}"])


def answer(problem: Problem, accuracy: float, rng: random.Random) -> str:
    lines = list(solve(parse_problem(problem.problem)))
    return "\n".join(lines) if rng.random() < accuracy else spoil(lines, rng)


def trajectory(
    problem: Problem,
    *,
    step: int,
    rollout_accuracy: float,
    refined_accuracy: float | None,
    rng: random.Random,
) -> Trajectory:
    text = answer(problem, rollout_accuracy, rng)
    prompt = Prompt(
        problem=problem, epoch=0, sample_index=0, token_ids=ids(problem.problem), seed=rng.randrange(2**31)
    )
    rollout = Rollout(
        prompt=prompt, completion=completion(text, version=step - 1), grade=_TASK.grade(problem, text)
    )
    refinement, tokens, reason = None, rollout.completion.token_ids, RejectReason.NONE
    if refined_accuracy is not None:
        rewrite = answer(problem, refined_accuracy + (0.02 if rollout.grade.correct else 0.0), rng)
        truncated = rng.random() < 0.012
        done = completion(rewrite, version=0, stop=StopReason.LENGTH if truncated else StopReason.STOP)
        reason = RejectReason.REFINE_TRUNCATED if truncated else RejectReason.NONE
        context = RefinePrompt(token_ids=ids("refine"), num_cut_rollout_tokens=0, num_cut_reference_tokens=0)
        refinement = Refinement(prompt=context, completion=done, grade=_TASK.grade(problem, rewrite))
        tokens = done.token_ids
    shown = rollout if refinement is None else refinement
    return Trajectory(
        prompt=prompt, rollout=rollout, refinement=refinement, token_ids=tokens,
        text=shown.completion.text, grade=shown.grade,
        policy_version_min=step - 1, policy_version_max=step - 1,
        source=TrajectorySource.ROLLOUT if refinement is None else TrajectorySource.REFINED,
        teacher_context=TeacherContext.PROMPT, teacher_context_ids=prompt.token_ids,
        outcome=Outcome.CONSUMED if reason is RejectReason.NONE else Outcome.REJECTED, reason=reason,
    )  # fmt: skip


def stage_times(rng: random.Random, *, refines: bool) -> StageTimes:
    wobble = 1.0 + 0.12 * rng.random()
    shares = {
        Stage.ROLLOUT: 0.9 * wobble,
        Stage.REFINE: 1.3 * wobble if refines else 0.0,
        Stage.SCORE: 0.35 * wobble,
        Stage.LEARN: 0.7 * wobble,
        Stage.SYNC: 0.12,
    }
    return StageTimes(shares=shares, other_s=0.05, step_s=math.fsum(shares.values()) + 0.05)


def fake_config(*, num_steps: int, refines: bool) -> TrdConfig:
    source = TrajectorySource.REFINED if refines else TrajectorySource.ROLLOUT
    return TrdConfig(
        run=RunConfig(num_steps=num_steps, eval_every=25),
        method=MethodConfig(trajectory=source, teacher_context=TeacherContext.PROMPT),
        pipeline=PipelineConfig(prompts_per_step=64),
        learner=LearnerConfig(optimizer=OptimizerConfig(learning_rate=1e-3)),
    )


def fake_run(
    path: Path, *, num_steps: int = 6, done_steps: int | None = None, refines: bool = True,
    evals: bool = True, per_step: int = 8, seed: int = 0, roles: Sequence[Role] = (),
) -> RunFolder:  # fmt: skip
    """A run of which `done_steps` steps (all by default) are complete.

    `roles` are those that were watched.
    """
    rng = random.Random(seed)
    done_steps = num_steps if done_steps is None else done_steps
    folder = RunFolder.create(path)
    config = fake_config(num_steps=num_steps, refines=refines)
    folder.config.write_text(dump_config(config), encoding="utf-8")
    problems = generate_problems(seed=seed, split=Split.TRAIN)
    with MetricsWriter(folder) as writer:
        for step in range(done_steps + 1):
            skill = 0.22 + 0.28 * (1 - math.exp(-3 * step / num_steps))
            if step:
                _one_step(folder, writer, step, num_steps, per_step, skill, refines, problems, rng, roles)
            if evals and (step % max(1, num_steps // 6) == 0 or step == num_steps):
                writer.on_eval(_evaluation(step, skill, rng))
    return folder


def _one_step(folder, writer, step, num_steps, per_step, skill, refines, problems, rng, roles) -> None:
    rewritten = 0.93 + 0.04 * step / num_steps if refines else None
    done = [
        trajectory(next(problems), step=step, rollout_accuracy=skill, refined_accuracy=rewritten, rng=rng)
        for _ in range(per_step)
    ]
    consumed = [t for t in done if t.outcome is Outcome.CONSUMED]
    warm = min(1.0, step / (0.1 * num_steps))
    learner_step = LearnerStep(
        learner_step=step, policy_version=step,
        loss=0.12 + 0.5 * math.exp(-4 * step / num_steps) + rng.gauss(0, 0.012),
        grad_norm=0.5 + 1.4 * math.exp(-6 * step / num_steps) + abs(rng.gauss(0, 0.12)),
        learning_rate=1e-3 * warm * (0.55 + 0.45 * math.cos(math.pi * step / num_steps)),
        num_loss_tokens=sum(len(t.token_ids) for t in consumed), student_logprob_mean=-0.4, learn_s=0.7,
    )  # fmt: skip
    sync = SyncReport(
        policy_version=step, num_parameters=900_000, num_bytes=3_600_000, checksum="0" * 64, sync_s=0.12
    )
    writer.on_step(
        step_metrics(
            done,
            step=learner_step,
            sync=sync,
            times=stage_times(rng, refines=refines),
            staleness_max=0,
            prompts_in=len(done),
            activity=activity_lap(step, roles, rng) if roles else None,
        )
    )
    write_trajectories(
        folder.trajectories, done, learner_step=step,
        token_values=[token_values(t, rng) if t.outcome is Outcome.CONSUMED else None for t in done],
    )  # fmt: skip


def token_values(t: Trajectory, rng: random.Random) -> TokenValues:
    """Small values, and one token where the teacher disagrees."""
    divergence = np.array([0.02 * rng.random() for _ in t.token_ids], dtype=np.float16)
    divergence[rng.randrange(len(divergence))] = 0.5 + rng.random()
    return TokenValues(divergence=divergence, student_logprobs=-2 * divergence)


def activity_lap(step: int, roles: Sequence[Role], rng: random.Random) -> ActivityLap:
    laps = {}
    for role in roles:
        busy = rng.uniform(0.5, 0.8)
        laps[role] = RoleLap(
            num_actors=2, busy_s=busy, waiting_s=0.9 - busy, idle_s=0.1, down_s=0.0, busy_by_stage_s={},
            num_restarts=0, queue=DepthLap(mean=1.5, max=9),
        )  # fmt: skip
    return ActivityLap(
        learner_step=step, step_s=1.0, roles=laps, buffer=DepthLap(mean=20.0, max=64),
        in_flight=DepthLap(mean=40.0, max=64), counts=dict.fromkeys(Tally, 0),
    )  # fmt: skip


def _evaluation(step, skill, rng):
    samples = []
    for p in range(200):
        chance = min(1.0, max(0.0, rng.betavariate(1.2 * skill / (1 - skill), 1.2)))
        samples += [
            GradedSample(
                prompt_id=str(p), correct=rng.random() < chance, num_tokens=24, truncated=rng.random() < 0.01
            )
            for _ in range(8)
        ]
    return summarise(samples, learner_step=step, dataset="held_out")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--done", type=int, default=None)
    parser.add_argument("--method", choices=("refined", "rollout"), default="refined")
    args = parser.parse_args()
    made = fake_run(
        args.folder,
        num_steps=args.steps,
        done_steps=args.done,
        refines=args.method == "refined",
        per_step=64,
        roles=[Role.GENERATOR, Role.TEACHER, Role.LEARNER],
    )
    print(write_report(made.path))
