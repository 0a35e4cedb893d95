"""What a sweep would cost: steps, rollouts, tokens, and time by the measure of another run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trd_ray.config import TrdConfig
from trd_ray.errors import DataError, describe
from trd_ray.metrics import read_metrics
from trd_ray.run_folder import RunFolder
from trd_ray.types import TrajectorySource


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one trial or of many."""

    num_steps: int = 0
    num_trajectories: int = 0
    """In training."""
    num_rollouts: int = 0
    """Answers of the student, in training and evaluation."""
    most_tokens: int = 0
    """Tokens written by student and teacher, with every answer as long as it may be."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            num_steps=self.num_steps + other.num_steps,
            num_trajectories=self.num_trajectories + other.num_trajectories,
            num_rollouts=self.num_rollouts + other.num_rollouts,
            most_tokens=self.most_tokens + other.most_tokens,
        )


def trial_cost(config: TrdConfig) -> Cost:
    """From the configuration alone."""
    method, run = config.method, config.run
    trajectories = run.num_steps * config.pipeline.trajectories_per_step
    by_student = method.makes_rollout or method.trajectory is TrajectorySource.SPECULATIVE
    by_teacher = method.refines or method.trajectory is TrajectorySource.TEACHER
    each = config.generator.sampling.max_tokens * by_student + config.teacher.sampling.max_tokens * by_teacher
    evaluated = num_evals(config) * config.data.eval_problems * config.eval.num_samples
    return Cost(
        num_steps=run.num_steps,
        num_trajectories=trajectories,
        num_rollouts=trajectories * by_student + evaluated,
        most_tokens=trajectories * each + evaluated * config.eval.sampling.max_tokens,
    )


def num_evals(config: TrdConfig) -> int:
    """Before the first step, after the last, and between."""
    if not config.data.eval:
        return 0
    every = config.run.eval_every
    between = range(every, config.run.num_steps, every) if every else ()
    return 2 + len(between)


def total_cost(configs: Iterable[TrdConfig]) -> Cost:
    return sum((trial_cost(config) for config in configs), Cost())


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a run needed for a trajectory."""

    seconds: float
    tokens: float


def measure(run_dir: Path) -> Measure:
    """Of all its steps but the first, which warms up. Raises `DataError` if there are fewer than two."""
    steps = read_metrics(RunFolder.open(run_dir).metrics)[1:]
    if not steps:
        raise DataError(
            describe(
                "the run has too few steps to measure by", where=str(run_dir), got="fewer than 2 steps",
                expected="2 or more in metrics.jsonl", remedy="name another run with --like",
            )
        )  # fmt: skip
    num = sum(step.num_trajectories for step in steps)
    return Measure(
        seconds=math.fsum(step.step_s for step in steps) / num,
        tokens=sum(step.num_generated_tokens for step in steps) / num,
    )
