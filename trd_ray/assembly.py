"""From a configuration to a pipeline: what a run reads before any role is started, and how roles,
data and run folder are put together. Both wirings go through here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trd_ray.activity import RoleActivity
from trd_ray.buffer import TrajectoryBuffer
from trd_ray.buffer_log import BufferLog, run_log
from trd_ray.config import TrdConfig
from trd_ray.data import ProblemStream
from trd_ray.device_turns import NoTurns
from trd_ray.end_token import answer_end_token, end_token_ids
from trd_ray.evaluation import eval_prompts
from trd_ray.evaluator import Evaluator
from trd_ray.feed import PromptFeed
from trd_ray.input_checks import read_eval_problems, read_task, read_training_problems, require_top_k
from trd_ray.interfaces import DeviceTurns, Generator, Learner, Teacher, WeightSync
from trd_ray.locate import FailureLocator, make_locator
from trd_ray.model_files import model_facts, resolve_model
from trd_ray.models import load_tokenizer, shared_vocab_size
from trd_ray.observer import Observer
from trd_ray.pipeline import Pipeline
from trd_ray.production import Producer
from trd_ray.prompting import PromptBuilder
from trd_ray.recorder import Recorder
from trd_ray.refinement import PromptFormat
from trd_ray.run_folder import RunFolder
from trd_ray.tasks.base import Task
from trd_ray.types import Problem, Prompt, TrajectorySource


@dataclass(frozen=True, kw_only=True)
class Roles:
    """One wiring's implementation of each Protocol."""

    generator: Generator
    teacher: Teacher
    learner: Learner
    weight_sync: WeightSync
    turns: DeviceTurns = field(default_factory=NoTurns)
    """Whose turn it is, where roles share devices."""


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """All that a run reads from disk before any role is started; reading it checks it."""

    student_path: Path
    teacher_path: Path
    vocab_size: int
    """Tokens of the tokenizer that student and teacher share."""
    tokenizer: PreTrainedTokenizerBase
    task: Task
    prompts: PromptBuilder
    stream: ProblemStream
    eval_problems: tuple[Problem, ...]

    def eval_prompts(self, config: TrdConfig) -> tuple[Prompt, ...]:
        """Requests of one evaluation."""
        return eval_prompts(
            self.eval_problems,
            self.prompts.student,
            num_samples=config.eval.num_samples,
            seed=config.run.seed,
        )


def read_inputs(config: TrdConfig) -> RunInputs:
    """Open models' tokenizers, task and data.

    Raises `ConfigError`, `ModelError` or `DataError`, each with the file, key or row and what to do.
    """
    student_path = resolve_model(config.student.model)
    teacher_path = resolve_model(config.teacher_model)
    vocab_size = shared_vocab_size(student_path, teacher_path)
    require_top_k(config.method, vocab_size=vocab_size)
    task = read_task(config)
    tokenizer = load_tokenizer(student_path)
    teacher_tokenizer = load_tokenizer(teacher_path)
    return RunInputs(
        student_path=student_path,
        teacher_path=teacher_path,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        task=task,
        prompts=_prompt_builder(config, (student_path, tokenizer), (teacher_path, teacher_tokenizer)),
        stream=read_training_problems(config),
        eval_problems=read_eval_problems(config),
    )


def _max_scored(config: TrdConfig, teacher_path: Path) -> int:
    """Teacher context and trajectory together. An engine that scores samples a token too, which is
    dropped; without one the model's own context is the limit."""
    if config.teacher_engine:
        return config.teacher.engine.max_model_len - 1
    return model_facts(teacher_path).context_length


def build_pipeline(
    config: TrdConfig,
    *,
    roles: Roles,
    inputs: RunInputs,
    folder: RunFolder,
    observer: Observer,
    activity: RoleActivity,
) -> Pipeline:
    """Put a run together."""
    producer = Producer(
        generator=roles.generator,
        teacher=roles.teacher,
        # Room for all that may be in the making, so that nothing finished waits to be put.
        buffer=TrajectoryBuffer(
            capacity=(config.pipeline.max_staleness + 1) * config.pipeline.trajectories_per_step,
            on_depth=activity.buffer.set,
        ),
        task=inputs.task,
        prompts=inputs.prompts,
        method=config.method,
        score=config.teacher.score,
        rollout_sampling=config.generator.sampling,
        refine_sampling=config.teacher.sampling,
        vocab_size=inputs.vocab_size,
        locator=_locator(config, roles=roles, inputs=inputs),
    )
    return Pipeline(
        config,
        producer=producer,
        learner=roles.learner,
        weight_sync=roles.weight_sync,
        feed=PromptFeed(
            inputs.stream, inputs.prompts.student, pipeline=config.pipeline, seed=config.run.seed
        ),
        evaluator=build_evaluator(config, generator=roles.generator, inputs=inputs, observer=observer),
        recorder=Recorder(
            folder,
            keep_checkpoints=config.run.keep_checkpoints,
            buffer_log=_open_log(config, folder) if config.pipeline.log_targets else None,
        ),
        observer=observer,
        activity=activity,
        turns=roles.turns,
    )


def _open_log(config: TrdConfig, folder: RunFolder) -> BufferLog:
    log = run_log(config.pipeline, folder)
    log.open_for_writing()
    return log


def _locator(config: TrdConfig, *, roles: Roles, inputs: RunInputs) -> FailureLocator | None:
    if config.method.trajectory is not TrajectorySource.SPLICED:
        return None
    return make_locator(
        config.method.splice, task=inputs.task, teacher=roles.teacher, tokenizer=inputs.tokenizer
    )


def build_evaluator(
    config: TrdConfig, *, generator: Generator, inputs: RunInputs, observer: Observer
) -> Evaluator | None:
    """The evaluation of `data.eval`; None if there is none."""
    if not inputs.eval_problems:
        return None
    return Evaluator(
        generator=generator,
        prompts=inputs.eval_prompts(config),
        grade=inputs.task.grade,
        sampling=config.eval.sampling,
        dataset=config.data.eval,
        observer=observer,
    )


def _prompt_builder(
    config: TrdConfig,
    student: tuple[Path, PreTrainedTokenizerBase],
    teacher_side: tuple[Path, PreTrainedTokenizerBase],
) -> PromptBuilder:
    teacher = config.teacher
    student_path, tokenizer = student
    teacher_path, teacher_tokenizer = teacher_side
    return PromptBuilder(
        student_format=PromptFormat(
            task_name=config.data.task,
            tokenizer=tokenizer,
            enable_thinking=config.student.enable_thinking,
        ),
        teacher_format=PromptFormat(
            task_name=config.data.task,
            tokenizer=teacher_tokenizer,
            enable_thinking=teacher.enable_thinking,
        ),
        max_student_prompt=config.max_student_prompt,
        max_teacher_prompt=teacher.engine.max_model_len - teacher.sampling.max_tokens,
        max_scored=_max_scored(config, teacher_path),
        max_trained=config.generator.engine.max_model_len,
        end_token_id=answer_end_token(tokenizer, end_token_ids(student_path, tokenizer)),
        privileged=config.method.privileged,
    )
