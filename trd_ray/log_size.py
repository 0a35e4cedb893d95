"""How large the log of the buffer may become, before anything is started."""

from __future__ import annotations

from trd_ray.choices import DType, ScoreMethod
from trd_ray.config import TrdConfig
from trd_ray.model_files import ModelFacts

_LOGPROB_BYTES = 4
# As engines send them.
_TOPK_LOGPROB_BYTES = 2
_HIDDEN_BYTES = {DType.FLOAT32: 4, DType.BFLOAT16: 2}


def log_bytes_per_step(config: TrdConfig, *, teacher: ModelFacts) -> int:
    """Most bytes that a step adds, before compression (which takes off about a fifth); 0 without a log.

    That is with every answer as long as it may be; an answer that is half as long takes half.
    """
    if not config.pipeline.log_targets:
        return 0
    tokens = config.max_trajectory_tokens * target_bytes_per_token(config, teacher=teacher)
    return round(config.pipeline.trajectories_per_step * (tokens + _bytes_without_targets(config, teacher)))


def target_bytes_per_token(config: TrdConfig, *, teacher: ModelFacts) -> float:
    """Of a trajectory's target, by `teacher.score`: hidden states, the top k, or nothing."""
    if not config.method.scores or config.teacher.score is ScoreMethod.LEARNER:
        return 0.0
    if config.teacher.score is ScoreMethod.HIDDEN:
        return float(teacher.hidden_width * _HIDDEN_BYTES[config.teacher.hidden_dtype])
    return config.method.num_targets * (_TOPK_LOGPROB_BYTES + _id_bytes(teacher)) + _LOGPROB_BYTES


def _bytes_without_targets(config: TrdConfig, teacher: ModelFacts) -> float:
    """Prompts, answers and what the teacher is shown: ids, and log-probabilities of what was sampled."""
    student_tokens = config.generator.engine.max_model_len
    teacher_tokens = config.teacher.engine.max_model_len if config.teacher_group else 0
    sampled = config.generator.sampling.max_tokens if config.method.makes_rollout else 0
    if config.method.teacher_generates:
        sampled += config.teacher.sampling.max_tokens
    # The teacher's prompt stands there as what it wrote after, and as the context that it scores under.
    ids = student_tokens + 2 * teacher_tokens + config.max_trajectory_tokens
    return ids * _id_bytes(teacher) + sampled * _LOGPROB_BYTES


def _id_bytes(teacher: ModelFacts) -> float:
    return (teacher.vocab_size - 1).bit_length() / 8
