"""The learner's own teacher: the same as one elsewhere, moved as its formula says, and resumed exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_models import make_tiny_model, make_tiny_qwen3
from tests.unit.training_samples import deferred, make_samples, rewarded, with_topk
from trd_ray.batching import make_training_batch
from trd_ray.choices import Divergence, DType, Normalization, Reward, ScoreMethod, Support, TeacherWeights
from trd_ray.config import LearnerConfig, LoraConfig, MethodConfig, OptimizerConfig, RewardConfig
from trd_ray.errors import CheckpointError
from trd_ray.local.learner import LocalLearner
from trd_ray.scoring import HiddenScorer, ScoreRequest
from trd_ray.types import DeferredTarget, TeacherContext, TrainingBatch, TrainingSample, TrajectorySource

LENGTHS = [(3, 12), (2, 1), (5, 7), (4, 3)]
EMA = MethodConfig(teacher_weights=TeacherWeights.EMA, ema_decay=0.75)
PERIODIC = MethodConfig(teacher_weights=TeacherWeights.PERIODIC, periodic_every=2)
INITIAL = MethodConfig(teacher_weights=TeacherWeights.INITIAL)
LORA = LoraConfig(rank=4, alpha=8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_tiny_qwen3(root / "student", seed=0)
    make_tiny_qwen3(root / "teacher", seed=1, tie_word_embeddings=False)
    make_tiny_model(root / "capped_student", "gemma2", seed=2, final_logit_softcapping=2.0)
    make_tiny_model(root / "scaled_teacher", "granite", seed=3, logits_scaling=0.5)
    return root


def make_learner(
    models: Path,
    method: MethodConfig,
    score: ScoreMethod,
    *,
    lora: LoraConfig = LoraConfig(),  # noqa: B008 (frozen)
    student: str = "student",
    teacher: str = "teacher",
) -> LocalLearner:
    return LocalLearner(
        LearnerConfig(optimizer=OptimizerConfig(learning_rate=3e-3, warmup_ratio=0.0), lora=lora),
        method=method,
        score=score,
        student=models / student,
        teacher=models / (teacher if method.teacher_weights is TeacherWeights.EXTERNAL else student),
        num_steps=6,
        seed=0,
    )


def batch_of(samples: list[TrainingSample], step: int = 1, *, num_ranks: int = 1) -> TrainingBatch:
    return make_training_batch(samples, learner_step=step, num_ranks=num_ranks, micro_batch_tokens=40)


def deferred_samples(seed: int = 0) -> list[TrainingSample]:
    samples = make_samples(LENGTHS, seed=seed, vocab_size=128)
    return [deferred(s, np.arange(10, 14 + 3 * i, dtype=np.int32)) for i, s in enumerate(samples)]


def scored(samples: list[TrainingSample], path: Path) -> list[TrainingSample]:
    """The same samples with the hidden states that a teacher elsewhere would send."""
    scorer = HiddenScorer.load(path, dtype=DType.FLOAT32, hidden_dtype=DType.FLOAT32, batch_tokens=100)
    targets = [s.target for s in samples if isinstance(s.target, DeferredTarget)]
    hidden = scorer.score(
        [
            ScoreRequest(context_ids=target.context_ids, token_ids=sample.response_ids)
            for target, sample in zip(targets, samples, strict=True)
        ]
    )
    return [replace(sample, target=target) for sample, target in zip(samples, hidden, strict=True)]


@pytest.mark.parametrize(
    ("method", "lora", "student", "teacher"),
    [
        (MethodConfig(), LoraConfig(), "student", "teacher"),
        (MethodConfig(divergence=Divergence.JSD), LORA, "student", "teacher"),
        (INITIAL, LoraConfig(), "student", "student"),
        (INITIAL, LORA, "student", "student"),
        (MethodConfig(), LoraConfig(), "capped_student", "scaled_teacher"),
        (INITIAL, LORA, "capped_student", "capped_student"),
    ],
)
async def test_learner_scoring_is_hidden_scoring(
    models: Path, method: MethodConfig, lora: LoraConfig, student: str, teacher: str
) -> None:
    own = make_learner(models, method, ScoreMethod.LEARNER, lora=lora, student=student, teacher=teacher)
    sent = make_learner(models, method, ScoreMethod.HIDDEN, lora=lora, student=student, teacher=teacher)
    start = {name: weight.clone() for name, weight in own.named_weights()}
    for step in (1, 2, 3):
        samples = deferred_samples(step)
        first = await own.learn(batch_of(samples, step))
        second = await sent.learn(batch_of(scored(samples, models / teacher), step))
        assert first.loss == pytest.approx(second.loss, rel=1e-5, abs=1e-7)
        assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-4, abs=1e-5)
    # A step of Adam on a gradient that is all float noise, as at the start of OPSD, is not comparable.
    if student != teacher:
        for (name, left), (_, right) in zip(own.named_weights(), sent.named_weights(), strict=True):
            # Adam makes much of a gradient of nearly zero: single entries differ, what was learnt does not.
            assert torch.dist(left, right) <= 1e-2 * torch.dist(left, start[name]), name


async def test_the_first_teacher_is_the_student_itself(models: Path) -> None:
    """Under the same context the divergence from one's own first weights is zero, and then grows."""
    samples = [deferred(s, s.prompt_ids) for s in make_samples(LENGTHS, vocab_size=128)]
    learner = make_learner(models, INITIAL, ScoreMethod.LEARNER, lora=replace(LORA, dropout=0.0))
    assert learner.teacher_model is None
    assert (await learner.learn(batch_of(samples))).loss == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for _, parameter in learner.module.adapters.named():
            parameter.normal_(std=0.1)
    assert (await learner.learn(batch_of(samples, 2))).loss > 1e-3


async def test_dropout_does_not_reach_the_teacher(models: Path) -> None:
    learner = make_learner(models, INITIAL, ScoreMethod.LEARNER, lora=replace(LORA, dropout=0.5))
    tensors = learner._teacher.collate(
        tuple(deferred_samples()), learner_weights(batch_of(deferred_samples()))
    )
    learner.module.train()
    first, second = (learner.module._initial_hidden(tensors.teacher_input) for _ in range(2))
    assert torch.equal(first, second)
    assert learner.module.model.training


def learner_weights(batch: TrainingBatch):
    from trd_ray.collate import TokenWeights

    return TokenWeights.of(batch, Normalization.TOKEN)


def copies(named) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in named}


@pytest.mark.parametrize("lora", [LoraConfig(), LORA], ids=["all weights", "adapters"])
async def test_ema_and_periodic_by_hand(models: Path, lora: LoraConfig) -> None:
    ema = make_learner(models, EMA, ScoreMethod.LEARNER, lora=lora)
    periodic = make_learner(models, PERIODIC, ScoreMethod.LEARNER, lora=lora)
    start = copies(ema.named_weights())
    students, renewed = [], []
    for step in (1, 2, 3):
        await ema.learn(batch_of(deferred_samples(step), step))
        await periodic.learn(batch_of(deferred_samples(step), step))
        students.append(copies(ema.named_weights()))
        renewed.append(copies(periodic.named_weights()))
    teacher = dict(ema.teacher_model.named_parameters())
    kept = dict(periodic.teacher_model.named_parameters())
    moved = 0
    for name, first in start.items():
        # 0.75^3 = 27/64 of the start; the students count 1/4 times 9/16, 3/4 and 1.
        parts = [students[i][name].double() for i in range(3)]
        expected = 27 / 64 * first.double() + 9 / 64 * parts[0] + 12 / 64 * parts[1] + 16 / 64 * parts[2]
        torch.testing.assert_close(teacher[name].double(), expected, rtol=1e-6, atol=1e-8)
        # Renewed after step 2, not after 1 or 3.
        assert torch.equal(kept[name], renewed[1][name])
        moved += not torch.equal(kept[name], first)
    assert moved > 0
    assert (ema._teacher.version, periodic._teacher.version) == (3, 2)


GRPO = MethodConfig(
    trajectory=TrajectorySource.ROLLOUT, teacher_context=TeacherContext.PROMPT, divergence=Divergence.NONE,
    reward=RewardConfig(kind=Reward.GRPO),
)  # fmt: skip
CASES = {
    "ema": (EMA, ScoreMethod.LEARNER, LoraConfig()),
    "ema with adapters": (EMA, ScoreMethod.LEARNER, LORA),
    "periodic, pushed": (
        replace(PERIODIC, support=Support.TOP_K, top_k=4),
        ScoreMethod.PREFILL,
        LoraConfig(),
    ),
    "adapters off": (INITIAL, ScoreMethod.LEARNER, replace(LORA, dropout=0.3)),
    "grpo": (GRPO, ScoreMethod.HIDDEN, LoraConfig()),
}


def samples_for(method: MethodConfig, score: ScoreMethod, seed: int) -> list[TrainingSample]:
    if not method.scores:
        return [rewarded(s, seed=i) for i, s in enumerate(make_samples(LENGTHS, seed=seed, vocab_size=128))]
    if score is ScoreMethod.PREFILL:
        return [
            with_topk(s, top_k=4, vocab_size=128) for s in make_samples(LENGTHS, seed=seed, vocab_size=128)
        ]
    return deferred_samples(seed)


@pytest.mark.parametrize("name", CASES)
async def test_a_resumed_learner_goes_on_exactly(models: Path, tmp_path: Path, name: str) -> None:
    method, score, lora = CASES[name]

    async def steps(learner: LocalLearner, first: int) -> list[float]:
        batches = [batch_of(samples_for(method, score, step), step) for step in range(first, first + 3)]
        return [(await learner.learn(batch)).loss for batch in batches]

    learner = make_learner(models, method, score, lora=lora)
    await steps(learner, 1)
    await learner.save(tmp_path / "step_3")
    expected = await steps(learner, 4)
    torch.manual_seed(99)  # the checkpoint holds the state of dropout's generator
    resumed = make_learner(models, method, score, lora=lora)
    assert await resumed.load(tmp_path / "step_3") == 3
    assert await steps(resumed, 4) == expected
    if method.teacher_moves:
        teachers = (dict(one.teacher_model.named_parameters()) for one in (learner, resumed))
        left, right = teachers
        assert all(torch.equal(left[key], right[key]) for key in left)
        assert learner._teacher.version == resumed._teacher.version > 0


async def test_checkpoints_of_other_teachers_and_adapters_are_refused(models: Path, tmp_path: Path) -> None:
    ema = make_learner(models, EMA, ScoreMethod.LEARNER)
    await ema.save(tmp_path / "ema")
    with pytest.raises(CheckpointError, match=r"(?s)moving_teacher = ema.*moving_teacher = none"):
        await make_learner(models, INITIAL, ScoreMethod.LEARNER).load(tmp_path / "ema")
    with pytest.raises(CheckpointError, match=r"(?s)lora = none.*lora = rank 4, alpha 8, all-linear"):
        await make_learner(models, EMA, ScoreMethod.LEARNER, lora=LORA).load(tmp_path / "ema")
    (tmp_path / "ema" / "teacher.safetensors").unlink()
    with pytest.raises(CheckpointError, match="teacher's weights are missing"):
        await make_learner(models, EMA, ScoreMethod.LEARNER).load(tmp_path / "ema")


@pytest.mark.parametrize(
    ("method", "score"),
    [(GRPO, ScoreMethod.HIDDEN), (replace(MethodConfig(), support=Support.TOP_K), ScoreMethod.FUSED)],
)
def test_a_teacher_that_is_not_needed_is_not_read(
    models: Path, method: MethodConfig, score: ScoreMethod
) -> None:
    learner = make_learner(models, method, score, teacher="no_such_folder")
    assert learner.teacher_model is None


async def test_trajectory_means_do_not_depend_on_the_split(models: Path) -> None:
    method = replace(MethodConfig(), normalization=Normalization.TRAJECTORY)
    one, many = (make_learner(models, method, ScoreMethod.LEARNER) for _ in range(2))
    first = await one.learn(batch_of(deferred_samples()))
    second = await many.learn(batch_of(deferred_samples(), num_ranks=5))
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-5)
    assert first.student_logprob_mean == pytest.approx(second.student_logprob_mean, rel=1e-5)
