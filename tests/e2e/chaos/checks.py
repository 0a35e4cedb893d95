"""What must hold after a run, whatever struck it."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from launch.replay import replay
from tests.e2e.chaos.faults import LIMIT_S, PATIENCE, START_S, Fault, Kind, Moment, Target
from trd_ray.assembly import read_inputs
from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.feed import PromptFeed
from trd_ray.ledger import PromptKey, prompt_key
from trd_ray.metrics import StepMetrics, read_metrics
from trd_ray.model_files import resolve_model
from trd_ray.replay import LossDifference
from trd_ray.run_folder import RunFolder
from trd_ray.run_state import RunState
from trd_ray.trajectory_log import read_trajectories

LOSS_RTOL = 1e-4
# Adam makes a whole step of a gradient that is zero but for rounding. Weights of a step that was lost or
# made twice are apart by a step of every weight.
MOST_WEIGHT_DISTANCE = 0.02
_TEACHERS = (Target.TEACHER, Target.TEACHER_CORE)
ENGINES = (*_TEACHERS, Target.GENERATOR, Target.GENERATOR_CORE)
"""Who has nothing to do after the last push; the learner and the disk have the last checkpoint."""
# A heartbeat, a kill that waits for an end, a restart of the interpreter: on a machine that is shared.
SLACK_S = 60.0 * PATIENCE


@dataclass(frozen=True, kw_only=True)
class Books:
    """What became of the prompts of a run."""

    num_in: int
    lost: tuple[PromptKey, ...]
    """Drawn, and neither ended nor pending."""
    duplicated: tuple[PromptKey, ...]
    """Ended more than once, or ended and still pending."""
    foreign: tuple[PromptKey, ...]
    """Ended or pending, and not among those that were drawn."""

    def problems(self) -> list[str]:
        found = (("lost", self.lost), ("twice", self.duplicated), ("never drawn", self.foreign))
        return [f"{len(keys)} prompts {what}: {keys[:3]}" for what, keys in found if keys]


def read_books(folder: RunFolder, state: RunState) -> Books:
    """From the rows of all trajectories, the last checkpoint and the problems themselves, anew."""
    drawn, ended = Counter(_drawn(folder, state)), Counter(_ended(folder))
    pending = Counter((p.problem.prompt_id, p.epoch, p.sample_index) for p in state.pending)
    seen = ended + pending
    return Books(
        num_in=state.prompts.num_in,
        lost=tuple((drawn - seen).elements()),
        duplicated=tuple(key for key, num in seen.items() if num > 1),
        foreign=tuple(seen.keys() - drawn.keys()),
    )


def _drawn(folder: RunFolder, state: RunState) -> list[PromptKey]:
    config = load_config(folder.config)
    inputs = read_inputs(config)
    feed = PromptFeed(inputs.stream, inputs.prompts.student, pipeline=config.pipeline, seed=config.run.seed)
    return [prompt_key(prompt) for prompt in feed.draw(state.num_drawn)]


def _ended(folder: RunFolder) -> list[PromptKey]:
    return [(row.prompt_id, row.epoch, row.sample_index) for row in read_trajectories(folder.trajectories)]


def check_steps(folder: RunFolder, config: TrdConfig, state: RunState) -> list[str]:
    """Metrics: every step once, whole, finite, fresh enough; the identity of prompts from step to step."""
    metrics = read_metrics(folder.metrics)
    steps = [m.learner_step for m in metrics]
    problems = []
    if steps != list(range(1, config.run.num_steps + 1)):
        problems.append(f"steps in metrics.jsonl: {steps}")
    for m in metrics:
        if not (math.isfinite(m.loss) and m.num_loss_tokens > 0 and m.policy_version == m.learner_step):
            problems.append(f"step {m.learner_step}: loss {m.loss}, version {m.policy_version}")
        if m.staleness_max > config.pipeline.max_staleness:
            problems.append(f"step {m.learner_step}: staleness {m.staleness_max}")
    problems += _check_counts(folder, metrics, state)
    return problems


def _check_counts(folder: RunFolder, metrics: list[StepMetrics], state: RunState) -> list[str]:
    problems = []
    rows = Counter(row.learner_step for row in read_trajectories(folder.trajectories))
    num_ended = 0
    for m in metrics:
        num_ended += m.num_trajectories
        if rows[m.learner_step] != m.num_trajectories:
            problems.append(
                f"step {m.learner_step}: {rows[m.learner_step]} rows, metrics say {m.num_trajectories}"
            )
    num_rejected = sum(m.num_rejected for m in metrics)
    count = state.prompts
    expected = (num_ended - num_rejected, num_rejected)
    if (count.num_consumed, count.num_rejected) != expected:
        problems.append(
            f"run_state: {count.num_consumed} consumed, {count.num_rejected} rejected; metrics {expected}"
        )
    if metrics and metrics[-1].prompts_pending != count.num_pending:
        # Nothing is drawn after the last step.
        problems.append(f"pending: {count.num_pending}, metrics {metrics[-1].prompts_pending}")
    return problems


def check_replay(run_dir: Path, replay_dir: Path) -> tuple[list[str], float]:
    """Train the learner alone on the run's log: the same losses, and the same weights in the end.

    Returns:
        Problems, and the distance of the weights over the length of what was learnt.
    """
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = replay(run_dir, [f"run.dir={replay_dir}"], no_ray=True, dry_run=False)
    problems = [] if code == 0 else [f"the replay ended with {code}"]
    ours, theirs = (
        {m.learner_step: m.loss for m in read_metrics(RunFolder(path).metrics)}
        for path in (run_dir, replay_dir)
    )
    for step, loss in ours.items():
        apart = LossDifference(learner_step=step, loss=theirs.get(step, math.nan), run_loss=loss)
        if apart.relative > LOSS_RTOL:
            problems.append(f"step {step}: loss {loss:.6g}, replay {apart.loss:.6g}")
    distance = _weight_distance(RunFolder(run_dir), RunFolder(replay_dir), step=max(ours))
    if distance > MOST_WEIGHT_DISTANCE:
        problems.append(f"weights are {distance:.3g} of what was learnt away from those of the replay")
    return problems, distance


def _weight_distance(run: RunFolder, replayed: RunFolder, *, step: int) -> float:
    start = resolve_model(load_config(run.config).student.model)
    ours, theirs, first = (
        load_file(folder / "model.safetensors")
        for folder in (run.checkpoint(step) / "hf", replayed.checkpoint(step) / "hf", start)
    )
    apart = sum((ours[name].double() - theirs[name].double()).square().sum() for name in ours)
    learnt = sum((ours[name].double() - first[name].double()).square().sum() for name in ours)
    return float(torch.sqrt(apart / learnt))


def expected_words(fault: Fault) -> list[str]:
    """Patterns that a log must hold, so that a person can see what happened."""
    name = {
        Target.GENERATOR: r"generator-\d", Target.GENERATOR_CORE: r"generator-\d",
        Target.TEACHER: r"teacher-\d", Target.TEACHER_CORE: r"teacher-\d", Target.LEARNER: r"learner-\d",
    }.get(fault.target, "")  # fmt: skip
    if fault.kind is Kind.FULL_DISK:
        return [r"full|[Nn]o space", "--resume"]
    if fault.kind is Kind.TORN_CHECKPOINT:
        return ["checkpoint is damaged", "move this folder away"]
    if fault.target is Target.DRIVER:
        return []
    if fault.moment is Moment.START:
        return [name, "remedy"]
    if fault.moment is Moment.CHECKPOINT and fault.nth > 1 and fault.target in _TEACHERS:
        return []  # What the last step needs is there by then: nobody may come to miss it.
    if fault.kind is Kind.STOP:
        # Who, which call, and how long it was waited for.
        return [rf"{name}.*(is replaced|started anew)|(is replaced|started anew).*{name}",
                rf"{name}\.\w+", r"after \d+(\.\d)? s"]  # fmt: skip
    if fault.kind is Kind.KILL:
        return [rf"{name}.*is replaced|started anew.*{name}"]
    return []


def check_words(fault: Fault, text: str, *, was_needed: bool = True) -> list[str]:
    """
    Args:
        was_needed: there was something left to do for whom the fault struck, so somebody came to miss it.
    """
    # The console breaks long lines.
    flat = re.sub(r"\s+", " ", text)
    patterns = expected_words(fault) if was_needed else []
    problems = [f"the log has no {p!r}" for p in patterns if not re.search(p, flat)]
    if "Traceback (most recent call last)" in text:
        problems.append("the log has a traceback")
    return problems


def limit_s(fault: Fault) -> float:
    """How long the run that it strikes may take longer than one that nothing strikes."""
    wait_s = START_S if fault.moment is Moment.START else LIMIT_S[fault.moment]
    # A push has several waits in a row.
    return SLACK_S + (4 if fault.moment is Moment.SYNC else 1) * wait_s + fault.slow_s
