"""How much memory each role needs for what can be computed beforehand, in bytes.

Left out, since they depend on the run: activations, the interpreter and its libraries (about 1 to
2 GiB a process).
"""

from __future__ import annotations

from dataclasses import dataclass

from trd_ray.choices import Device, DType, ScoreMethod, TeacherWeights
from trd_ray.config import EngineConfig, LearnerConfig, LoraConfig, TrdConfig
from trd_ray.models import ModelFacts

_FLOAT32_BYTES = 4
_BYTES = {DType.FLOAT32: 4, DType.BFLOAT16: 2}
_ADAM_STATES = 2
# Student and teacher logits, and the student's gradient, of one chunk.
_CHUNK_COPIES = 3
# Input plus output width of the seven linear layers of a block, in hidden widths, where the feed-forward
# part is about three times as wide as the model.
_LORA_WIDTHS = 20
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


def memory_plan(config: TrdConfig, *, student: ModelFacts, teacher: ModelFacts) -> tuple[RoleMemory, ...]:
    """Memory of one actor of each role; roles that the method does without are left out."""
    learner = learner_parts(config.learner, student)
    learner |= _learner_teacher_parts(config, teacher)
    roles = [
        RoleMemory(role="learner", num_actors=config.learner.num_ranks, parts=learner),
        RoleMemory(
            role="generator",
            num_actors=config.generator.num_actors,
            parts=_engine_parts(config.generator.engine, student),
        ),
    ]
    if config.teacher_group:
        parts = {}
        if config.teacher_scorer:
            parts["scorer weights"] = teacher.num_parameters * _BYTES[config.teacher.score_dtype]
        if config.teacher_engine:
            parts |= _engine_parts(config.teacher.engine, teacher)
        roles.append(RoleMemory(role="teacher", num_actors=config.teacher.num_actors, parts=parts))
    return tuple(roles)


def learner_parts(learner: LearnerConfig, student: ModelFacts) -> dict[str, int]:
    """One rank's share: ZeRO 1 shards the optimizer, 2 the gradients too, 3 the weights too.

    Rajbhandari et al. 2020 (arXiv 1910.02054), section 5: with mixed precision the optimizer holds
    float32 weights beside the two moments. With adapters only they have gradients and states.
    """
    size, ranks = _BYTES[learner.dtype], learner.num_ranks
    states = _ADAM_STATES + (0 if learner.dtype is DType.FLOAT32 else 1)
    shard = {stage: ranks if learner.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    trained = _num_adapter_parameters(learner.lora, student) if learner.lora.rank else student.num_parameters
    trained_size = _FLOAT32_BYTES if learner.lora.rank else size
    parts = {"weights": student.num_parameters * size // shard[3]}
    if learner.lora.rank:
        parts["adapters (about)"] = trained * _FLOAT32_BYTES // shard[3]
    return parts | {
        "gradients": trained * trained_size // shard[2],
        "optimizer": trained * states * _FLOAT32_BYTES // shard[1],
        "logits chunk": learner.kl_chunk_size * student.vocab_size * _FLOAT32_BYTES * _CHUNK_COPIES,
    }


def _num_adapter_parameters(lora: LoraConfig, facts: ModelFacts) -> int:
    return lora.rank * _LORA_WIDTHS * facts.hidden_width * facts.num_layers


def _learner_teacher_parts(config: TrdConfig, teacher: ModelFacts) -> dict[str, int]:
    """What of the teacher a rank holds: its head, or all of it; nothing if vLLM gives log-probabilities."""
    size = _BYTES[config.learner.dtype]
    method = config.method
    own = method.teacher_weights is TeacherWeights.INITIAL and config.learner.lora.rank > 0
    if method.scores and config.teacher.score is ScoreMethod.HIDDEN:
        return {"teacher head": teacher.vocab_size * teacher.hidden_width * size}
    scores = method.scores and config.teacher.score is ScoreMethod.LEARNER and not own
    parts = {"teacher weights": teacher.num_parameters * size} if scores else {}
    if method.teacher_moves and not (scores and config.learner.dtype is DType.FLOAT32):
        where = "" if scores else " (first rank)"
        parts[f"moving teacher in float32{where}"] = teacher.num_parameters * _FLOAT32_BYTES
    return parts


def _engine_parts(engine: EngineConfig, facts: ModelFacts) -> dict[str, int]:
    weights = facts.num_parameters * _BYTES[engine.dtype] // engine.tensor_parallel_size
    if engine.device is Device.CUDA:  # vLLM fills its share of the GPU with KV cache
        return {"engine weights": weights}
    return {"engine weights": weights, "KV cache": int(engine.kv_cache_gib * _GIB)}
