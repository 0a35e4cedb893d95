"""The configured run with the student as its own teacher, along its own rollouts: all must agree then."""

from __future__ import annotations

import dataclasses

from trd_ray.choices import Divergence, DType, Renormalize, ScoreMethod, Support, TeacherWeights
from trd_ray.config import MethodConfig, TeacherConfig, TrdConfig
from trd_ray.types import TeacherContext, TrajectorySource

# Large enough that a step changes weights in bfloat16 too; nothing of it is kept.
_PUSHED_LEARNING_RATE = 1e-2
_FEWEST_TARGETS = 16


def self_teaching(config: TrdConfig) -> TrdConfig:
    """The teachers have what they have in the run: an engine, a scorer, or both."""
    by_engine = config.method.scores and config.teacher.score.by_engine
    method = MethodConfig(
        # What the trajectory is says only which parts a teacher has; nothing is refined here.
        trajectory=TrajectorySource.REFINED if config.teacher_engine else TrajectorySource.ROLLOUT,
        teacher_weights=TeacherWeights.INITIAL,
        teacher_context=TeacherContext.PROMPT,
        divergence=Divergence.FORWARD_KL,
        support=Support.TOP_K if by_engine else Support.FULL,
        top_k=max(_FEWEST_TARGETS, config.method.num_targets),
        # With both rescaled it is a divergence of two distributions, and 0 only where they are equal.
        renormalize=Renormalize.BOTH,
    )
    optimizer = dataclasses.replace(
        config.learner.optimizer, learning_rate=_PUSHED_LEARNING_RATE, warmup_ratio=0.0
    )
    score = ScoreMethod.PREFILL if by_engine else ScoreMethod.HIDDEN
    return dataclasses.replace(
        config,
        method=method,
        teacher=_with_room(config, dataclasses.replace(config.teacher, score=score)),
        learner=dataclasses.replace(config.learner, optimizer=optimizer),
        weight_sync=dataclasses.replace(config.weight_sync, verify_every=1),
    )


def _with_room(config: TrdConfig, teacher: TeacherConfig) -> TeacherConfig:
    """An engine that scores holds the longest rollout and one token more."""
    longest = max(teacher.engine.max_model_len, config.generator.engine.max_model_len + 1)
    if not teacher.score.by_engine:
        return teacher
    return dataclasses.replace(teacher, engine=dataclasses.replace(teacher.engine, max_model_len=longest))


def coarsest(config: TrdConfig) -> DType:
    """The format with the fewest digits among all that take part."""
    teacher = config.teacher
    used = (
        config.generator.engine.dtype, config.learner.dtype, teacher.score_dtype, teacher.hidden_dtype,
        teacher.engine.dtype,
    )  # fmt: skip
    return DType.BFLOAT16 if DType.BFLOAT16 in used else DType.FLOAT32
