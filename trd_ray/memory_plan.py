"""How much memory each role needs on each of its devices, in bytes, as far as it follows from the options.

Left out: the interpreter and its libraries (about 1 to 2 GiB of host memory a process), the context of a
GPU (about half a GiB a process), fragmentation. Activations are estimates:

- learner, a micro-batch of T tokens (padding included), width D, L layers, b bytes a number. What a block
  keeps for the backward pass, counted in its modules and checked by `benchmarks/memory.py`: four of the
  feed-forward width (gate, its activation, up, product); inputs and outputs of two norms, 6 D, in bfloat16
  8 D since they compute in float32; queries before and after their norm and rotation, and the attention's
  output; keys likewise, and values. The feed-forward width is not read from the model: 4/3 of a block's
  parameters over D holds it, and most of queries and keys. Attention scores are never stored.
  With `activation_checkpointing` each block keeps its input alone, and one is computed anew at a time.
- the loss, `kl_chunk_size` tokens at a time: logits of student and teacher (with top-k targets the
  student's alone), a few rows of intermediate values, and the float32 gradient of an output head that is
  trained.
- scorer, T = `score_batch_tokens`: the widest point of one block, about 10 T D b: its input, and gate, up and
  product of a feed-forward part that is about three times as wide as the model.
- an engine's activations and graphs are inside its share of a GPU, so that what is left for the KV cache
  is an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trd_ray.choices import Device, DType, ScoreMethod, SyncBackend, TeacherWeights
from trd_ray.config import EngineConfig, LearnerConfig, LoraConfig, TeacherConfig, TrdConfig
from trd_ray.kv_cache import BYTES, KvRoom, kv_room
from trd_ray.model_files import ModelFacts
from trd_ray.roles import Role

_FLOAT32_BYTES = 4
_ADAM_STATES = 2
_ROWS_ENTRIES = 2**22
"""Entries of the intermediate values of the loss, as `losses/chunked.py` has them."""
# Input plus output width of the seven linear layers of a block, in hidden widths, where the feed-forward
# part is about three times as wide as the model.
_LORA_WIDTHS = 20
# See the module's docstring.
_KEPT_OF_BLOCK = 4 / 3
_NORM_WIDTHS = {DType.FLOAT32: 6.0, DType.BFLOAT16: 8.0}
# Of queries (taken to be as wide as the model) and of keys and values, beyond what a block's parameters hold.
_QUERY_WIDTHS = {DType.FLOAT32: 1.3, DType.BFLOAT16: 2.3}
_KEY_WIDTHS = {DType.FLOAT32: 2.0, DType.BFLOAT16: 3.0}
_LAST_WIDTHS = 4
"""The last norm, and the gradient of its output."""
_WIDEST_POINT = 10
_GIB = 2**30
REDUCE_BUCKET_NUMEL = 50_000_000
"""Gradient elements that DeepSpeed reduces together. Its default buffer is ten times that."""
ENGINE_WEIGHTS = "engine weights"
SCORER_WEIGHTS = "scorer weights"
_MICRO_BATCH_STATES = "hidden states of a micro-batch"
_FLOAT32_HEAD = "teacher head in float32"
_MADE_IN_A_STEP = (_MICRO_BATCH_STATES, _FLOAT32_HEAD)
_OFFLOADED = ("weights", "adapters (about)", "optimizer", ENGINE_WEIGHTS, SCORER_WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class RoleMemory:
    """One actor's parts on each of its devices, in bytes."""

    role: Role
    num_actors: int
    parts: dict[str, int]
    asleep: int = 0
    """What stays on the device while other roles have their turn."""
    kv: KvRoom | None = None
    """None for a role without an engine."""
    engine_share: int | None = None
    """Part of a GPU that the engine takes as a whole; None on a CPU, without an engine, or if unknown."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def offloaded(self) -> int:
        """What goes from a device to host memory while other roles have their turn on it."""
        return sum(size for part, size in self.parts.items() if part in _OFFLOADED)


def memory_plan(config: TrdConfig, *, student: ModelFacts, teacher: ModelFacts) -> tuple[RoleMemory, ...]:
    """Memory of one actor of each role; roles that the method does without are left out."""
    device_bytes = int(config.placement.device_memory_gib * _GIB)
    held = _learner_teacher_parts(config, teacher) | _shared_parts(config, student, teacher)
    full = config.method.scores and not config.teacher.score.by_engine
    learner = learner_parts(config.learner, student, teacher_logits=full) | held
    generator = _with_engine(
        RoleMemory(role=Role.GENERATOR, num_actors=config.generator.num_actors, parts={}),
        config.generator.engine,
        student,
        device_bytes,
    )
    roles = [
        RoleMemory(
            role=Role.LEARNER,
            num_actors=config.learner.num_ranks,
            parts=learner,
            asleep=sum(size for part, size in held.items() if part not in _MADE_IN_A_STEP),
        ),
        generator,
    ]
    if config.teacher_group:
        parts = _scorer_parts(config.teacher, teacher) if config.teacher_scorer else {}
        teachers = RoleMemory(role=Role.TEACHER, num_actors=config.teacher.num_actors, parts=parts)
        if config.teacher_engine:
            teachers = _with_engine(teachers, config.teacher.engine, teacher, device_bytes)
        roles.append(teachers)
    return tuple(roles)


def learner_parts(
    learner: LearnerConfig, student: ModelFacts, *, teacher_logits: bool = True
) -> dict[str, int]:
    """One rank's share: ZeRO 1 shards the optimizer, 2 the gradients too, 3 the weights too.

    Rajbhandari et al. 2020 (arXiv 1910.02054), section 5: with mixed precision the optimizer holds
    float32 weights beside the two moments; DeepSpeed has that copy where all is float32, too. With adapters
    only they have gradients and states. Gradients are reduced in a buffer of fixed size.
    """
    size, ranks = BYTES[learner.dtype], learner.num_ranks
    states = _ADAM_STATES + 1
    shard = {stage: ranks if learner.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    trained = num_trained_parameters(learner, student)
    trained_size = _FLOAT32_BYTES if learner.lora.rank else size
    parts = {"weights": student.num_parameters * size // shard[3]}
    if learner.lora.rank:
        parts["adapters (about)"] = trained * _FLOAT32_BYTES // shard[3]
    parts |= {
        "gradients": trained * trained_size // shard[2],
        "reduce bucket": _num_buckets(learner) * REDUCE_BUCKET_NUMEL * trained_size,
        "optimizer": trained * states * _FLOAT32_BYTES // shard[1],
        "logits chunk": _chunk_bytes(learner, student, teacher_logits=teacher_logits),
        "activations (about)": _activations(learner, student),
    }
    return parts | _head_parts(learner, student)


def _head_parts(learner: LearnerConfig, student: ModelFacts) -> dict[str, int]:
    """What the loss makes of the student's head beside its logits."""
    size = student.vocab_size * student.hidden_width * _FLOAT32_BYTES
    parts = {} if learner.lora.rank else {"gradient of the head": size}
    return parts | ({"head in float32": size} if _converts_heads(learner) else {})


def _converts_heads(learner: LearnerConfig) -> bool:
    """On a CPU 16-bit heads are multiplied in float32."""
    return learner.device is Device.CPU and learner.dtype is not DType.FLOAT32


def _num_buckets(learner: LearnerConfig) -> int:
    """One is filled while the other is sent, where they overlap (on GPUs)."""
    return 2 if learner.device is Device.CUDA else 1


def _chunk_bytes(learner: LearnerConfig, student: ModelFacts, *, teacher_logits: bool) -> int:
    rows = min(learner.kl_chunk_size, _ROWS_ENTRIES // student.vocab_size + 1)
    copies = 2 * learner.kl_chunk_size + rows if teacher_logits else learner.kl_chunk_size
    return copies * student.vocab_size * _FLOAT32_BYTES


def num_trained_parameters(learner: LearnerConfig, student: ModelFacts) -> int:
    """Weights that have gradients: all, or the adapters (about)."""
    return _num_adapter_parameters(learner.lora, student) if learner.lora.rank else student.num_parameters


def _activations(learner: LearnerConfig, facts: ModelFacts) -> int:
    layers, kept = facts.num_layers, _kept_by_block(learner.dtype, facts)
    width = facts.hidden_width
    numbers = layers * width + kept if learner.activation_checkpointing else layers * kept
    return round(learner.micro_batch_tokens * BYTES[learner.dtype] * (numbers + _LAST_WIDTHS * width))


def _kept_by_block(dtype: DType, facts: ModelFacts) -> float:
    """Numbers that one block keeps for each token."""
    # A head of its own is not told from a tied one, and counts as a part of the blocks.
    in_blocks = facts.num_parameters - facts.vocab_size * facts.hidden_width
    width, keys = facts.hidden_width, facts.num_kv_heads * facts.head_dim
    return (
        _KEPT_OF_BLOCK * in_blocks / facts.num_layers / width
        + (_NORM_WIDTHS[dtype] + _QUERY_WIDTHS[dtype]) * width
        + _KEY_WIDTHS[dtype] * keys
    )


def _num_adapter_parameters(lora: LoraConfig, facts: ModelFacts) -> int:
    return lora.rank * _LORA_WIDTHS * facts.hidden_width * facts.num_layers


def _learner_teacher_parts(config: TrdConfig, teacher: ModelFacts) -> dict[str, int]:
    """What of the teacher a rank holds: its head, or all of it; nothing if vLLM gives log-probabilities."""
    size = BYTES[config.learner.dtype]
    method = config.method
    own = method.teacher_weights is TeacherWeights.INITIAL and config.learner.lora.rank > 0
    if method.scores and config.teacher.score is ScoreMethod.HIDDEN:
        # What a micro-batch's tokens need of the step's hidden states, at most.
        states = config.learner.micro_batch_tokens * teacher.hidden_width * BYTES[config.teacher.hidden_dtype]
        head = teacher.vocab_size * teacher.hidden_width * size
        parts = {"teacher head": head, _MICRO_BATCH_STATES: states}
        if _converts_heads(config.learner):
            parts[_FLOAT32_HEAD] = teacher.vocab_size * teacher.hidden_width * _FLOAT32_BYTES
        return parts
    scores = method.scores and config.teacher.score is ScoreMethod.LEARNER and not own
    parts = {"teacher weights": teacher.num_parameters * size} if scores else {}
    if method.teacher_moves and not (scores and config.learner.dtype is DType.FLOAT32):
        where = "" if scores else " (first rank)"
        parts[f"moving teacher in float32{where}"] = teacher.num_parameters * _FLOAT32_BYTES
    return parts


def _shared_parts(config: TrdConfig, student: ModelFacts, teacher: ModelFacts) -> dict[str, int]:
    """The memory through which a push goes on one machine, in the engines' format."""
    shares = config.weight_sync.backend is SyncBackend.CPU and config.weight_sync.shared_memory
    if not shares or config.learner.device is not Device.CPU:  # beside GPUs it is host memory
        return {}
    size = student.num_parameters * BYTES[config.generator.engine.dtype]
    if config.pushes_teacher:
        size += teacher.num_parameters * BYTES[config.teacher.engine.dtype]
    return {"weights shared with engines (first rank)": size}


def _scorer_parts(teacher: TeacherConfig, facts: ModelFacts) -> dict[str, int]:
    size = BYTES[teacher.score_dtype]
    activations = teacher.score_batch_tokens * facts.hidden_width * size * _WIDEST_POINT
    return {SCORER_WEIGHTS: facts.num_parameters * size, "scorer activations (about)": activations}


def _with_engine(role: RoleMemory, engine: EngineConfig, facts: ModelFacts, device_bytes: int) -> RoleMemory:
    """The role with its engine's parts. On a GPU of unknown memory the KV cache is left out."""
    weights = facts.num_parameters * BYTES[engine.dtype] // engine.tensor_parallel_size
    share, cache = None, int(engine.kv_cache_gib * _GIB)
    parts = role.parts | {ENGINE_WEIGHTS: weights}
    if engine.device is Device.CUDA:
        if not device_bytes:
            return replace(role, parts=parts, kv=kv_room(engine, facts, num_bytes=None))
        share = int(engine.gpu_memory_utilization * device_bytes)
        cache = share - weights
    return replace(
        role,
        parts=parts | {"KV cache": max(0, cache)},
        kv=kv_room(engine, facts, num_bytes=cache),
        engine_share=share,
    )
