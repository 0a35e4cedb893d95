"""How much memory each role needs for what can be computed beforehand, in bytes.

Left out, since they depend on the run: activations, the interpreter and its libraries (about 1 to
2 GiB a process).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trd_ray.choices import DType
from trd_ray.config import EngineConfig, LearnerConfig, TrdConfig
from trd_ray.models import ModelFacts, model_facts
from trd_ray.types import TrajectorySource

_FLOAT32_BYTES = 4
_BYTES = {DType.FLOAT32: 4, DType.BFLOAT16: 2}
_ADAM_STATES = 2
# Student and teacher logits, and the student's gradient, of one chunk.
_CHUNK_COPIES = 3
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class RoleMemory:
    """One actor's parts, in bytes."""

    role: str
    num_actors: int
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def memory_plan(config: TrdConfig, *, student: Path, teacher: Path) -> tuple[RoleMemory, ...]:
    """Memory of one actor of each role."""
    student_facts, teacher_facts = model_facts(student), model_facts(teacher)
    teacher_parts = {"scorer weights": teacher_facts.num_parameters * _BYTES[config.teacher.score_dtype]}
    if config.method.trajectory is TrajectorySource.REFINED:
        teacher_parts |= _engine_parts(config.teacher.engine, teacher_facts)
    return (
        RoleMemory(
            role="learner",
            num_actors=config.learner.num_ranks,
            parts=learner_parts(config.learner, student_facts, teacher_facts),
        ),
        RoleMemory(
            role="generator",
            num_actors=config.generator.num_actors,
            parts=_engine_parts(config.generator.engine, student_facts),
        ),
        RoleMemory(role="teacher", num_actors=config.teacher.num_actors, parts=teacher_parts),
    )


def learner_parts(learner: LearnerConfig, student: ModelFacts, teacher: ModelFacts) -> dict[str, int]:
    """One rank's share: ZeRO 1 shards the optimizer, 2 the gradients too, 3 the weights too.

    Rajbhandari et al. 2020 (arXiv 1910.02054), section 5: with mixed precision the optimizer holds
    float32 weights beside the two moments.
    """
    size, ranks = _BYTES[learner.dtype], learner.num_ranks
    states = _ADAM_STATES + (0 if learner.dtype is DType.FLOAT32 else 1)
    shard = {stage: ranks if learner.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    return {
        "weights": student.num_parameters * size // shard[3],
        "gradients": student.num_parameters * size // shard[2],
        "optimizer": student.num_parameters * states * _FLOAT32_BYTES // shard[1],
        "teacher head": teacher.vocab_size * teacher.hidden_width * size,
        "logits chunk": learner.kl_chunk_size * student.vocab_size * _FLOAT32_BYTES * _CHUNK_COPIES,
    }


def _engine_parts(engine: EngineConfig, facts: ModelFacts) -> dict[str, int]:
    weights = facts.num_parameters * _BYTES[engine.dtype] // engine.tensor_parallel_size
    return {"engine weights": weights, "KV cache": int(engine.kv_cache_gib * _GIB)}
