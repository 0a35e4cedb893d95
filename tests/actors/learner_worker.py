"""What one learner rank does in its own process for `test_learner.py`; results are plain records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from actors.learner_weights import gathered
from tests.unit.training_samples import deferred, make_samples, rewarded, with_topk
from trd_ray.batching import make_training_batch, part_for_rank
from trd_ray.choices import (
    Divergence,
    DType,
    Normalization,
    Reward,
    ScoreMethod,
    Support,
    TeacherWeights,
)
from trd_ray.config import LearnerConfig, LoraConfig, MethodConfig, OptimizerConfig, RewardConfig
from trd_ray.errors import CheckpointError, RunFailedError
from trd_ray.lora import named_weights
from trd_ray.objective_options import TargetKind, objective_needs
from trd_ray.types import TeacherContext, TeacherHidden, TrainingBatch, TrainingSample, TrajectorySource

NUM_STEPS = 4
VOCAB, WIDTH = 128, 64
# Unequal on purpose: the mean over micro-batch means is far from the mean over tokens.
LENGTHS = [(3, 30), (2, 1), (5, 2), (4, 17), (1, 3), (6, 25), (2, 2)]
MICRO_BATCH_TOKENS = 60


@dataclass(frozen=True, kw_only=True)
class Case:
    """One learner group to run."""

    name: str
    zero_stage: int
    student: str = "tied"
    dtype: DType = DType.FLOAT32
    method: MethodConfig = field(default_factory=MethodConfig)
    score: ScoreMethod = ScoreMethod.HIDDEN
    lora_rank: int = 0
    activation_checkpointing: bool = False

    @property
    def config(self) -> LearnerConfig:
        return LearnerConfig(
            zero_stage=self.zero_stage,
            dtype=self.dtype,
            threads=1,
            micro_batch_tokens=MICRO_BATCH_TOKENS,
            kl_chunk_size=16,
            activation_checkpointing=self.activation_checkpointing,
            lora=LoraConfig(rank=self.lora_rank, alpha=2 * max(1, self.lora_rank)),
            optimizer=OptimizerConfig(learning_rate=3e-3, max_grad_norm=0.5),
        )


TOP_K = MethodConfig(support=Support.TOP_K, top_k=8)
GRPO = MethodConfig(
    trajectory=TrajectorySource.ROLLOUT, teacher_context=TeacherContext.PROMPT, divergence=Divergence.NONE,
    reward=RewardConfig(kind=Reward.GRPO),
)  # fmt: skip
NLL = MethodConfig(trajectory=TrajectorySource.TEACHER, divergence=Divergence.NLL)
INITIAL = MethodConfig(teacher_weights=TeacherWeights.INITIAL)
EMA = MethodConfig(teacher_weights=TeacherWeights.EMA, ema_decay=0.5)
EMA_TOP_K = replace(EMA, support=Support.TOP_K, top_k=8)

EXTERNAL = TeacherWeights.EXTERNAL

FAILING = ("zero1", "zero2", "zero3")
"""Cases whose groups are also made to fail."""

CASES = (
    Case(name="zero1", zero_stage=1),
    Case(name="zero2", zero_stage=2),
    Case(name="zero3", zero_stage=3),
    Case(
        name="zero3_untied_recompute_reverse",
        zero_stage=3,
        student="untied",
        activation_checkpointing=True,
        method=MethodConfig(divergence=Divergence.REVERSE_KL, normalization=Normalization.TRAJECTORY),
    ),
    Case(name="zero1_topk", zero_stage=1, method=TOP_K, score=ScoreMethod.FUSED),
    Case(name="zero2_grpo", zero_stage=2, method=GRPO),
    Case(name="zero3_nll", zero_stage=3, method=NLL),
    Case(name="zero1_adapters_off", zero_stage=1, method=INITIAL, score=ScoreMethod.LEARNER, lora_rank=4),
    Case(name="zero2_adapters_off", zero_stage=2, method=INITIAL, score=ScoreMethod.LEARNER, lora_rank=4),
    Case(
        name="zero3_adapters_off",
        zero_stage=3,
        method=INITIAL,
        score=ScoreMethod.LEARNER,
        lora_rank=4,
        activation_checkpointing=True,
        student="untied",
    ),
    Case(name="zero3_ema", zero_stage=3, method=EMA, score=ScoreMethod.LEARNER),
    Case(
        name="zero1_lora_ema_pushed", zero_stage=1, method=EMA_TOP_K, score=ScoreMethod.PREFILL, lora_rank=4
    ),
    Case(
        name="zero3_lora_bfloat16",
        zero_stage=3,
        method=INITIAL,
        score=ScoreMethod.LEARNER,
        lora_rank=4,
        dtype=DType.BFLOAT16,
    ),
    Case(name="zero1_bfloat16", zero_stage=1, dtype=DType.BFLOAT16),
    Case(name="zero3_bfloat16", zero_stage=3, dtype=DType.BFLOAT16),
)


@dataclass(kw_only=True)
class Result:
    """What one rank saw of one case."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    logprob_means: list[float] = field(default_factory=list)
    teacher: dict[str, torch.Tensor] = field(default_factory=dict)
    resumed_teacher: dict[str, torch.Tensor] = field(default_factory=dict)
    teacher_versions: list[int] = field(default_factory=list)
    base_unchanged: bool = True
    resumed_losses: list[float] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    manifest_names: list[str] = field(default_factory=list)
    manifest_shapes: list[tuple[int, ...]] = field(default_factory=list)
    resumed_version: int = -1
    resumed_checksum: str | None = None
    saved_checksum: str | None = None
    resumed_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    probe: list[float] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    checksums_around_failure: list[str | None] = field(default_factory=list)


def make_batch(learner_step: int, *, num_ranks: int, case: Case | None = None) -> TrainingBatch:
    """Each step its own samples; the fourth has fewer samples than there are ranks."""
    lengths = LENGTHS if learner_step < NUM_STEPS else LENGTHS[:1]
    samples = make_samples(lengths, seed=learner_step, vocab_size=VOCAB, hidden_width=WIDTH)
    if case is not None:
        samples = [with_target(sample, case, seed=index) for index, sample in enumerate(samples)]
    return make_training_batch(
        samples, learner_step=learner_step, num_ranks=num_ranks, micro_batch_tokens=MICRO_BATCH_TOKENS
    )


def with_target(sample: TrainingSample, case: Case, *, seed: int) -> TrainingSample:
    """`sample` with what the case's method computes from."""
    match objective_needs(case.method, case.score).target:
        case TargetKind.HIDDEN:
            return sample
        case TargetKind.TOP_K:
            return with_topk(sample, top_k=8, vocab_size=VOCAB, seed=seed)
        case TargetKind.DEFERRED:
            # Another context than the student's: longer for some samples, shorter for others.
            return deferred(sample, np.arange(20 + seed, 24 + 2 * seed, dtype=np.int32))
        case TargetKind.NONE:
            return rewarded(sample, seed=seed)


def poisoned(batch: TrainingBatch, *, rank: int) -> TrainingBatch:
    """`batch` with a NaN in the hidden states of the first sample of one rank."""
    first, *others = batch.micro_batches[rank]
    hidden = np.array(first[0].target.hidden)
    hidden[0, 0] = np.nan
    broken = replace(first[0], target=TeacherHidden(hidden=hidden))
    ranks = list(batch.micro_batches)
    ranks[rank] = ((broken, *first[1:]), *others)
    return replace(batch, micro_batches=tuple(ranks))


def run_rank(rank: int, world_size: int, port: int, folder: Path) -> None:
    """Run all cases in this process, one after the other, and save the results."""
    from actors.learner import LearnerRank

    def start(case: Case) -> LearnerRank:
        learner = LearnerRank(
            case.config,
            method=case.method,
            score=case.score,
            student=folder / case.student,
            teacher=folder / ("teacher" if case.method.teacher_weights is EXTERNAL else case.student),
            rank=rank,
            world_size=world_size,
            num_steps=NUM_STEPS,
            seed=0,
            timeout_s=120.0,
        )
        learner.setup("127.0.0.1", port)
        return learner

    results: dict[str, Result] = {}
    for case in CASES:
        results[case.name] = run_case(case, start, rank, world_size, folder / f"{case.name}_{world_size}")
    torch.save(
        {name: vars(result) for name, result in results.items()}, folder / f"results_{world_size}_{rank}.pt"
    )
    start(CASES[0]).shutdown()


def run_case(case: Case, start, rank: int, world_size: int, checkpoint: Path) -> Result:
    result = Result()
    learner = start(case)
    before = collect_base(learner)
    for step in range(1, NUM_STEPS + 1):
        record = learner.learn(part_for_rank(make_batch(step, num_ranks=world_size, case=case), rank=rank))
        result.losses.append(record.loss)
        result.grad_norms.append(record.grad_norm)
        result.logprob_means.append(record.student_logprob_mean)
        if step == 2:
            learner.save(checkpoint)
            result.saved_checksum = learner.checksum("float32")
    result.weights = collect(learner)
    result.teacher = collect_teacher(learner)
    result.base_unchanged = base_is_unchanged(learner, before)
    manifest = learner.manifest("bfloat16")
    result.manifest_names = [spec.name for spec in manifest.tensors]
    result.manifest_shapes = [spec.shape for spec in manifest.tensors]
    result.probe = learner.probe_logprobs(np.arange(4, 9), np.arange(20, 26)).tolist()

    resumed = start(case)
    result.resumed_version = resumed.load(checkpoint)
    result.resumed_checksum = resumed.checksum("float32")
    for step in (3, 4):
        result.resumed_losses.append(resumed.learn(make_batch(step, num_ranks=world_size, case=case)).loss)
    result.resumed_weights = collect(resumed)
    result.resumed_teacher = collect_teacher(resumed)
    result.teacher_versions = [learner.teacher_version(), resumed.teacher_version()]
    if case.name in FAILING:
        fail_on_purpose(case, result, start, checkpoint, world_size)
    return result


def collect(learner) -> dict[str, torch.Tensor]:
    """All weights, on rank 0; two tensors a bucket, so that there are many buckets."""
    return learner.send_weights(clone_all, bucket_bytes=40_000) or {}


def collect_teacher(learner) -> dict[str, torch.Tensor]:
    """The weights of a teacher that moves, on the ranks that hold it."""
    copy = learner._teacher_side.copy
    return {} if copy is None else clone_all(copy.named_weights())


def collect_base(learner) -> dict[str, torch.Tensor]:
    """The student's own weights, without adapters, if it has some."""
    if learner._module.adapters is None:
        return {}
    named = named_weights(learner._module.model)
    with gathered([weight.base for weight in named], zero_stage=learner._config.zero_stage):
        return {weight.name: weight.base.detach().clone() for weight in named}


def base_is_unchanged(learner, before: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    after = collect_base(learner)
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in after)


def clone_all(named: Iterator[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in named}


def fail_on_purpose(case: Case, result: Result, start, checkpoint: Path, world_size: int) -> None:
    other = start(replace(case, zero_stage=1 + case.zero_stage % 3))
    try:
        other.load(checkpoint)
    except CheckpointError as error:
        result.errors["stage"] = str(error)
    try:
        other.learn(make_batch(2, num_ranks=world_size))
    except ValueError as error:
        result.errors["order"] = str(error)
    try:
        other.send_weights(give_up)
    except ZeroDivisionError:
        result.errors["send"] = "raised"
    result.checksums_around_failure.append(other.checksum("float32"))
    norm = other._module.model.get_decoder().norm.weight
    hook = norm.register_hook(lambda gradient: gradient * np.nan)
    try:
        other.learn(make_batch(1, num_ranks=world_size))
    except RunFailedError as error:
        result.errors["gradient"] = str(error)
    hook.remove()
    result.checksums_around_failure.append(other.checksum("float32"))
    try:
        other.learn(poisoned(make_batch(1, num_ranks=world_size), rank=world_size - 1))
    except RunFailedError as error:
        result.errors["nan"] = str(error)
    result.checksums_around_failure.append(other.checksum("float32"))


def give_up(named: Iterator[tuple[str, torch.Tensor]]) -> None:
    """A sender that breaks off after the first tensor."""
    next(named)
    raise ZeroDivisionError
