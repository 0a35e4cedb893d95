"""What a replay of a run may be: its options, its steps, and whether the log holds what its loss needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from trd_ray.buffer_log import BufferLog, run_log
from trd_ray.collate import require_needed
from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.errors import ConfigError, describe
from trd_ray.metrics import read_metrics
from trd_ray.model_files import resolve_model
from trd_ray.models import shared_vocab_size
from trd_ray.objective_options import TargetKind, objective_needs
from trd_ray.outcomes import Outcome
from trd_ray.resume import differences
from trd_ray.run_folder import RunFolder
from trd_ray.step_batch import step_batch
from trd_ray.types import Trajectory

# What shapes the loss and the steps of the learner, and where it runs. All else made the trajectories.
_MAY_CHANGE = (
    "run.",
    "learner.",
    "method.divergence",
    "method.beta",
    "method.support",
    "method.top_k",
    "method.renormalize",
    "method.tail",
    "method.estimator",
    "method.ratio_clip",
    "method.clip",
    "method.normalization",
    "method.gate.",
    "method.reward.",
    "pipeline.log_",
    "ray.",
    "timeouts.",
    "faults.",
    "weight_sync.",
    "tracking.",
)
# Of these, what changes no loss beyond rounding.
_SAME_LOSSES = (
    "run.dir",
    "run.eval_every",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.trackers",
    "learner.num_ranks",
    "learner.resources.",
    "learner.device",
    "learner.threads",
    "learner.zero_stage",
    "learner.micro_batch_tokens",
    "learner.activation_checkpointing",
    "learner.kl_chunk_size",
    "pipeline.",
    "ray.",
    "timeouts.",
    "faults.",
    "weight_sync.",
    "tracking.",
)


@dataclass(frozen=True, kw_only=True)
class ModelPaths:
    """The folders of the models that a learner reads."""

    student_path: Path
    teacher_path: Path
    """The student's, where the learner computes with nothing of the teacher."""


@dataclass(frozen=True, kw_only=True)
class ReplayPlan:
    """A replay that can be started."""

    config: TrdConfig
    """Of the replay: that of the run with the overrides. It keeps no log of its own."""
    source: RunFolder
    log: BufferLog
    num_steps: int
    """Steps to replay, from 1: those that the run completed, and at most `run.num_steps`."""
    losses: Mapping[int, float]
    """The run's own, by learner step."""
    changed: tuple[str, ...]
    """Options that differ from the run's and change the losses, in words; () if they should be equal."""

    def model_paths(self) -> ModelPaths:
        """Raises `ModelError` if a model that the learner needs is not there."""
        needs = objective_needs(self.config.method, self.config.teacher.score)
        student = resolve_model(self.config.student.model)
        if needs.target not in (TargetKind.HIDDEN, TargetKind.DEFERRED):
            return ModelPaths(student_path=student, teacher_path=student)
        teacher = resolve_model(self.config.teacher_model)
        shared_vocab_size(student, teacher)
        return ModelPaths(student_path=student, teacher_path=teacher)


def plan_replay(run_dir: Path, overrides: Sequence[str]) -> ReplayPlan:
    """Check that the run in `run_dir` can be replayed with `overrides` (`key.path=value`).

    Reads the log's first step. Raises `ConfigError` or `DataError` saying what is wrong; nothing is written.
    """
    source = RunFolder(run_dir)
    if not source.config.is_file():
        raise ConfigError(
            describe(
                "there is no run to replay", where="--replay", got=run_dir,
                expected=f"a run folder with {source.config.name}", remedy="check the path",
            )
        )  # fmt: skip
    saved = load_config(source.config)
    config = load_config(source.config, overrides)
    _require_own_folder(config, source)
    changed = _changes(saved, config)
    log = run_log(config.pipeline, source)
    losses = {metrics.learner_step: metrics.loss for metrics in read_metrics(source.metrics)}
    _require_logged(saved, source, log, losses)
    _check_first_step(config, log)
    return ReplayPlan(
        config=replace(config, pipeline=replace(config.pipeline, log_targets=False, log_url="")),
        source=source,
        log=log,
        num_steps=min(len(losses), config.run.num_steps),
        losses=losses,
        changed=changed,
    )


def consumed_of(trajectories: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
    """Those that are trained on, in their order."""
    return tuple(t for t in trajectories if t.outcome is Outcome.CONSUMED)


def _require_own_folder(config: TrdConfig, source: RunFolder) -> None:
    if Path(config.run.dir).expanduser().resolve() == source.path.resolve():
        raise ConfigError(
            describe(
                "a replay needs a folder of its own", where="run.dir", got=config.run.dir,
                expected="a new folder: the run's own keeps its metrics and checkpoints",
                remedy="add for example run.dir=runs/replay",
            )
        )  # fmt: skip
    RunFolder(config.run.dir).require_free()


def _changes(saved: TrdConfig, config: TrdConfig) -> tuple[str, ...]:
    """Changed options that change the losses. Raises `ConfigError` for one that a replay cannot follow."""
    changed = differences(saved, config)
    refused = [change.words for change in changed if not change.key.startswith(_MAY_CHANGE)]
    if refused:
        raise ConfigError(
            describe(
                "an option of what made the trajectories cannot change in a replay", where="overrides",
                got="; ".join(refused),
                expected="options of learner, loss (method.divergence, support, clip, ...), run and Ray",
                remedy="leave it out, or start a new run with it",
            )
        )  # fmt: skip
    return tuple(change.words for change in changed if not change.key.startswith(_SAME_LOSSES))


def _require_logged(saved: TrdConfig, source: RunFolder, log: BufferLog, losses: Mapping[int, float]) -> None:
    """Every step that the run completed must be in the log, from the first one on."""
    missing = sorted(set(range(1, len(losses) + 1)) - set(log.steps()))
    if losses and not missing:
        return
    expected = f"a segment for each of its {len(losses)} steps in {log.url}"
    remedy = "make a run with pipeline.log_targets=true, and replay that"
    if source.replay.exists():
        got, remedy = (
            "the folder of a replay, which keeps no log",
            f"replay the run that {source.replay} names",
        )
    elif not losses:
        got, expected, remedy = "no completed step", "at least one", "wait for its first step, or resume it"
    elif not saved.pipeline.log_targets and len(missing) == len(losses):
        got = "a run with pipeline.log_targets=false"
    else:
        got = f"no segment of step {missing[0]}"
    raise ConfigError(
        describe(
            "the run cannot be replayed: its log is not whole", where=f"--replay {source.path}",
            got=got, expected=expected, remedy=remedy,
        )
    )  # fmt: skip


def _check_first_step(config: TrdConfig, log: BufferLog) -> None:
    """The log must hold the targets that the loss needs: another loss may need others."""
    consumed = consumed_of(log.read_step(1))
    needs = objective_needs(config.method, config.teacher.score)
    try:
        batch = step_batch(consumed, learner_step=1, method=config.method, learner=config.learner)
        for micro_batches in batch.micro_batches:
            for sample in chain.from_iterable(micro_batches):
                require_needed(sample, needs)
    except ValueError as error:
        raise ConfigError(
            describe(
                "the log does not hold what the loss needs", where="method.*", got=error,
                expected="a loss that can be computed from the run's own targets",
                remedy="choose another loss, or make a run with this one",
            )
        ) from error  # fmt: skip
