"""Bytes that go from one process to another in a step, as pickled records of `trd_ray.types`.

The driver holds every trajectory, so what a teacher makes crosses twice: to the driver, and on to the
learner. Actors that share a node pass large arrays through its shared memory; on several nodes they are on
the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trd_ray.choices import ScoreMethod, TeacherWeights
from trd_ray.config import TrdConfig
from trd_ray.cost.workload import Lengths
from trd_ray.kv_cache import BYTES
from trd_ray.log_size import target_bytes_per_token
from trd_ray.memory_plan import num_trained_parameters
from trd_ray.types import TrajectorySource

if TYPE_CHECKING:
    from trd_ray.model_files import ModelFacts

_ID_BYTES = 4
_LOGPROB_BYTES = 4
_ARRAY_BYTES = 125
"""Of a pickled numpy array beside its numbers: class names, type, shape."""
_COMPLETION_BYTES = 260
"""Of a pickled `Completion` beside its tokens, log-probabilities and text."""
# A vocabulary of single characters, or one of word pieces.
_SMALL_VOCABULARY, _CHARACTERS_PER_PIECE = 1_000, 4
_FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Flow:
    """One kind of record or tensor, in one direction, in one step."""

    what: str
    source: str
    target: str
    num_tokens: int
    """That it stands for; 0 for weights and gradients."""
    num_bytes: int
    """Over all actors."""


def step_traffic(
    config: TrdConfig, lengths: Lengths, *, student: ModelFacts, teacher: ModelFacts
) -> tuple[Flow, ...]:
    """All flows of a step that are not empty, in the order of the stages."""
    flows = (
        *_answers(config, lengths, student),
        *_targets(config, lengths, teacher),
        _batch(config, lengths, teacher),
        *_weights(config, student=student, teacher=teacher),
    )
    return tuple(flow for flow in flows if flow.num_bytes)


def num_micro_batches(config: TrdConfig, lengths: Lengths) -> int:
    """Of one rank in a step, without padding: at least so many."""
    tokens = config.pipeline.trajectories_per_step * (lengths.prompt + lengths.trajectory)
    each = config.learner.num_ranks * config.learner.micro_batch_tokens
    return max(1, -(-round(tokens) // each))


def pushed_bytes(config: TrdConfig, student: ModelFacts) -> int:
    """Of one push to one engine worker: every weight once, in the engine's format."""
    return student.num_parameters * BYTES[config.generator.engine.dtype]


def _answers(config: TrdConfig, lengths: Lengths, facts: ModelFacts) -> Iterator[Flow]:
    """Prompts to the engines, what they write back."""
    num = config.pipeline.trajectories_per_step
    text = 1 if facts.vocab_size < _SMALL_VOCABULARY else _CHARACTERS_PER_PIECE
    for role, what, read, written in (
        ("generators", "rollouts", lengths.prompt, lengths.rollout),
        ("teachers", "refinements", lengths.teacher_prompt, lengths.refinement),
    ):
        if not written:
            continue
        yield Flow(
            what=f"prompts of {what}", source="driver", target=role, num_tokens=round(num * read),
            num_bytes=round(num * (read * _ID_BYTES + _ARRAY_BYTES)),
        )  # fmt: skip
        each = written * (_ID_BYTES + _LOGPROB_BYTES + text)
        yield Flow(
            what=what, source=role, target="driver", num_tokens=round(num * written),
            num_bytes=round(num * (each + _COMPLETION_BYTES)),
        )  # fmt: skip


def _targets(config: TrdConfig, lengths: Lengths, teacher: ModelFacts) -> Iterator[Flow]:
    """What is to be scored, and the teacher's distributions along it."""
    if not config.method.scores or config.teacher.score is ScoreMethod.LEARNER:
        return
    num = config.pipeline.trajectories_per_step
    if config.teacher.score is not ScoreMethod.FUSED:
        tokens = num * (lengths.context + lengths.trajectory)
        yield Flow(
            what="trajectories to score", source="driver", target="teachers", num_tokens=round(tokens),
            num_bytes=round(tokens * _ID_BYTES + num * 2 * _ARRAY_BYTES),
        )  # fmt: skip
    yield Flow(
        what=_target_words(config), source="teachers", target="driver",
        num_tokens=round(num * lengths.trajectory), num_bytes=_target_bytes(config, lengths, teacher),
    )  # fmt: skip


def _target_words(config: TrdConfig) -> str:
    if config.teacher.score is ScoreMethod.HIDDEN:
        return "hidden states"
    return f"top-{config.method.num_targets} log-probabilities"


def _target_bytes(config: TrdConfig, lengths: Lengths, teacher: ModelFacts) -> int:
    each = target_bytes_per_token(config, teacher=teacher)
    arrays = 1 if config.teacher.score is ScoreMethod.HIDDEN else 4
    num = config.pipeline.trajectories_per_step
    return round(num * (lengths.trajectory * each + arrays * _ARRAY_BYTES)) if each else 0


def _batch(config: TrdConfig, lengths: Lengths, teacher: ModelFacts) -> Flow:
    """Each rank is sent its own part of the batch."""
    num = config.pipeline.trajectories_per_step
    tokens = num * (lengths.prompt + lengths.trajectory)
    ids = tokens * _ID_BYTES + num * 2 * _ARRAY_BYTES
    if config.method.trajectory is TrajectorySource.ROLLOUT:
        ids += num * (lengths.trajectory * _LOGPROB_BYTES + _ARRAY_BYTES)
    if config.method.scores and config.teacher.score is ScoreMethod.LEARNER:
        ids += num * (lengths.context * _ID_BYTES + _ARRAY_BYTES)
    return Flow(
        what="training batch", source="driver", target="learner ranks", num_tokens=round(tokens),
        num_bytes=round(ids) + _target_bytes(config, lengths, teacher),
    )  # fmt: skip


def _weights(config: TrdConfig, *, student: ModelFacts, teacher: ModelFacts) -> Iterator[Flow]:
    ranks = config.learner.num_ranks
    if ranks > 1:
        yield Flow(
            what="gradients and weights (about)", source="learner ranks", target="learner ranks",
            num_tokens=0, num_bytes=ranks * _rank_bytes(config, student),
        )  # fmt: skip
    generator = config.generator
    workers = generator.num_actors * generator.engine.tensor_parallel_size
    yield Flow(
        what="weights", source="learner", target="generators", num_tokens=0,
        num_bytes=workers * pushed_bytes(config, student),
    )  # fmt: skip
    if config.pushes_teacher:
        every = config.method.periodic_every if _is_periodic(config) else 1
        workers = config.teacher.num_actors * config.teacher.engine.tensor_parallel_size
        size = teacher.num_parameters * BYTES[config.teacher.engine.dtype]
        yield Flow(
            what="the teacher's weights" + (f", one push in {every} steps" if every > 1 else ""),
            source="learner", target="teachers", num_tokens=0, num_bytes=workers * size // every,
        )  # fmt: skip


def _is_periodic(config: TrdConfig) -> bool:
    return config.method.teacher_weights is TeacherWeights.PERIODIC


def _rank_bytes(config: TrdConfig, student: ModelFacts) -> int:
    """That one rank sends in a step. Rajbhandari et al. 2020 (arXiv 1910.02054), section 7: ZeRO 1 and 2 send
    what plain data parallelism sends, twice the trained weights (a reduce-scatter and an all-gather, of
    (n - 1) / n each); ZeRO 3 gathers the weights once more. For one micro-batch a step; others add to it."""
    learner = config.learner
    size = _FLOAT32_BYTES if learner.lora.rank else BYTES[learner.dtype]
    trained = num_trained_parameters(learner, student) * size
    gathered = student.num_parameters * BYTES[learner.dtype] if learner.zero_stage >= 3 else 0
    share = (learner.num_ranks - 1) / learner.num_ranks
    # Without ZeRO 3 weights are gathered after the step; with it, before each of two passes.
    sent = trained + (2 * gathered if gathered else trained)
    return round(sent * share)
