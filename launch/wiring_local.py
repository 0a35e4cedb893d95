"""`--no-ray`: every role in this process, with transformers instead of vLLM. For a debugger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from transformers import PreTrainedModel

from trd_ray.assembly import Roles, RunInputs
from trd_ray.config import TrdConfig
from trd_ray.end_token import end_token_ids
from trd_ray.local.engine import LocalEngine, LocalGenerator, LocalTeacher
from trd_ray.local.learner import LocalLearner
from trd_ray.local.weight_sync import LocalWeightSync
from trd_ray.models import load_student, torch_dtype
from trd_ray.replay_plan import ModelPaths
from trd_ray.scoring import AsyncScorer, HiddenScorer


@asynccontextmanager
async def local_roles(config: TrdConfig, inputs: RunInputs) -> AsyncIterator[Roles]:
    """The roles of a run; the generator samples from the learner's own module."""
    learner = _load_learner(config, inputs)
    generator = load_generator(config, inputs, learner.module.model)
    yield Roles(
        generator=LocalGenerator(generator),
        teacher=_teacher(config, inputs, learner),
        learner=learner,
        weight_sync=LocalWeightSync(learner, generator),
    )


@asynccontextmanager
async def local_learner(config: TrdConfig, models: ModelPaths) -> AsyncIterator[LocalLearner]:
    """The learner alone, for a replay."""
    yield _load_learner(config, models)


def _load_learner(config: TrdConfig, models: RunInputs | ModelPaths) -> LocalLearner:
    return LocalLearner(
        config.learner,
        method=config.method,
        score=config.teacher.score,
        student=models.student_path,
        teacher=models.teacher_path,
        num_steps=config.run.num_steps,
        seed=config.run.seed,
    )


def _teacher(config: TrdConfig, inputs: RunInputs, learner: LocalLearner) -> LocalTeacher:
    """A teacher whose weights move is the learner's own copy, which is always the newest."""
    if not config.teacher_group:
        return LocalTeacher(None, None, top_k=0)
    model = learner.teacher_model if config.method.teacher_moves else None
    if model is None:
        model = load_student(inputs.teacher_path, torch_dtype(config.teacher.score_dtype))
    tokenizer = inputs.prompts.teacher_format.tokenizer
    engine = LocalEngine(
        model,
        tokenizer,
        end_ids=end_token_ids(inputs.teacher_path, tokenizer),
        max_batch=config.teacher.engine.max_num_seqs,
    )
    scorer = None
    if config.teacher_scorer:
        scorer = AsyncScorer(
            HiddenScorer(
                model,
                hidden_dtype=config.teacher.hidden_dtype,
                batch_tokens=config.teacher.score_batch_tokens,
            )
        )
    return LocalTeacher(engine, scorer, top_k=config.method.num_targets)


def load_generator(config: TrdConfig, inputs: RunInputs, model: PreTrainedModel) -> LocalEngine:
    """An engine around the student `model`."""
    return LocalEngine(
        model,
        inputs.tokenizer,
        end_ids=end_token_ids(inputs.student_path, inputs.tokenizer),
        max_batch=config.generator.engine.max_num_seqs,
    )
