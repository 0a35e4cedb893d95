"""The loss of a step, the schedule and the parameter groups, against plain written-out versions."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_models import make_tiny_qwen3
from tests.unit.training_samples import make_samples
from trd_ray.batching import make_training_batch
from trd_ray.choices import Divergence, DType, Normalization, Schedule, ScoreMethod
from trd_ray.collate import TokenWeights
from trd_ray.config import LearnerConfig, MethodConfig, OptimizerConfig
from trd_ray.errors import RunFailedError
from trd_ray.losses import token_divergence
from trd_ray.models import load_output_head, load_student
from trd_ray.teacher_side import LearnerTeacher, micro_batch_loss
from trd_ray.training import (
    DistillModule,
    learning_rate,
    load_distill_module,
    parameter_groups,
    require_finite,
    require_next_step,
)
from trd_ray.types import TrainingSample

VOCAB, WIDTH = 128, 64
LENGTHS = [(3, 12), (2, 1), (5, 2), (4, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("training")
    make_tiny_qwen3(root / "tied", seed=0)
    make_tiny_qwen3(root / "untied", seed=1, tie_word_embeddings=False)
    make_tiny_qwen3(root / "teacher", seed=2)
    return root


@pytest.fixture(scope="module")
def samples() -> list[TrainingSample]:
    return make_samples(LENGTHS, vocab_size=VOCAB, hidden_width=WIDTH)


FORWARD, REVERSE = MethodConfig(), MethodConfig(divergence=Divergence.REVERSE_KL)


def load(
    folder: Path, student: str, method: MethodConfig, config: LearnerConfig
) -> tuple[DistillModule, LearnerTeacher]:
    paths = {"student": folder / student, "teacher": folder / "teacher"}
    module = load_distill_module(
        config, method=method, score=ScoreMethod.HIDDEN, dtype=DType.FLOAT32, **paths
    )
    teacher = LearnerTeacher(
        method=method, score=ScoreMethod.HIDDEN, lora=config.lora, dtype=torch.float32,
        device=torch.device("cpu"), keeps_moving=True, **paths,
    )  # fmt: skip
    return module, teacher


def loss_and_gradients(
    folder: Path,
    student: str,
    samples: list[TrainingSample],
    *,
    num_ranks: int,
    tokens: int,
    config: LearnerConfig,
    method: MethodConfig = FORWARD,
) -> tuple[float, float, dict[str, torch.Tensor]]:
    module, teacher = load(folder, student, method, config)
    batch = make_training_batch(samples, learner_step=1, num_ranks=num_ranks, micro_batch_tokens=tokens)
    total = logprobs = 0.0
    for micro_batch in chain.from_iterable(batch.micro_batches):
        tensors = teacher.collate(micro_batch, TokenWeights.of(batch, method.normalization))
        loss, summed = micro_batch_loss(module, tensors, teacher)
        loss.backward()
        total += loss.item()
        logprobs += summed.item()
    gradients = {name: parameter.grad for name, parameter in module.model.named_parameters()}
    return total, logprobs / batch.num_trajectories, gradients


def written_out(
    folder: Path, student: str, samples: list[TrainingSample], *, by_trajectory: bool = False
) -> tuple[list[torch.Tensor], list[torch.Tensor], dict[str, torch.Tensor]]:
    """One unpadded sequence at a time, with full logits; divergences and logprobs of each sample."""
    model = load_student(folder / student, torch.float32)
    head = load_output_head(folder / "teacher", torch.float32)
    parts, logprobs = [], []
    for sample in samples:
        tokens = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
        student_logits = model(tokens[None]).logits[0, len(sample.prompt_ids) - 1 : -1]
        teacher_logits = torch.from_numpy(sample.target.hidden) @ head.T
        parts.append(token_divergence(student_logits, teacher_logits))
        chosen = tokens[len(sample.prompt_ids) :, None]
        logprobs.append(torch.log_softmax(student_logits.detach(), dim=-1).gather(1, chosen)[:, 0])
    mean = torch.stack([part.mean() for part in parts]) if by_trajectory else torch.cat(parts)
    mean.mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return [part.detach() for part in parts], logprobs, gradients


SPLITS = [(1, 1000, False), (3, 20, True), (6, 1, False)]


@pytest.mark.parametrize("student", ["tied", "untied"])
@pytest.mark.parametrize("normalization", list(Normalization))
@pytest.mark.parametrize(("num_ranks", "tokens", "recompute"), SPLITS)
def test_loss_and_gradient_are_means_over_the_whole_step_however_split(
    folder: Path,
    samples: list[TrainingSample],
    student: str,
    normalization: Normalization,
    num_ranks: int,
    tokens: int,
    recompute: bool,
) -> None:
    config = LearnerConfig(kl_chunk_size=5, activation_checkpointing=recompute)
    by_trajectory = normalization is Normalization.TRAJECTORY
    loss, logprob_mean, gradients = loss_and_gradients(
        folder, student, samples, num_ranks=num_ranks, tokens=tokens, config=config,
        method=MethodConfig(normalization=normalization),
    )  # fmt: skip
    parts, logprobs, expected = written_out(folder, student, samples, by_trajectory=by_trajectory)
    means = torch.stack([part.mean() for part in parts])
    assert loss == pytest.approx((means if by_trajectory else torch.cat(parts)).mean().item(), rel=1e-5)
    of_samples = torch.stack([part.mean() for part in logprobs])
    assert logprob_mean == pytest.approx(of_samples.mean().item(), rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_other_means_would_give_other_numbers(folder: Path, samples: list[TrainingSample]) -> None:
    parts, _, _ = written_out(folder, "tied", samples)
    right = torch.cat(parts).mean().item()
    of_sequences = torch.stack([part.mean() for part in parts]).mean().item()
    of_micro_batches = torch.stack([torch.cat(parts[:2]).mean(), torch.cat(parts[2:]).mean()]).mean().item()
    assert right != pytest.approx(of_sequences, rel=1e-2)
    assert right != pytest.approx(of_micro_batches, rel=1e-2)


def test_an_empty_micro_batch_has_zero_loss_and_zero_gradient(
    folder: Path, samples: list[TrainingSample]
) -> None:
    module, teacher = load(folder, "tied", REVERSE, LearnerConfig())
    batch = make_training_batch(samples, learner_step=1, num_ranks=1, micro_batch_tokens=100)
    tensors = teacher.collate((), TokenWeights.of(batch, REVERSE.normalization))
    loss, summed = micro_batch_loss(module, tensors, teacher)
    loss.backward()
    assert loss.item() == summed.item() == 0.0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in module.parameters())


def test_token_logprobs(folder: Path) -> None:
    module, _ = load(folder, "tied", FORWARD, LearnerConfig())
    prompt, tokens = np.array([7, 8, 9], dtype=np.int32), np.array([20, 21], dtype=np.int32)
    with torch.no_grad():
        logits = load_student(folder / "tied", torch.float32)(torch.tensor([[7, 8, 9, 20, 21]])).logits[0]
    expected = torch.log_softmax(logits, dim=-1)
    got = module.token_logprobs(prompt, tokens)
    assert got.tolist() == pytest.approx([expected[2, 20].item(), expected[3, 21].item()], abs=1e-5)
    assert module.training
    with pytest.raises(ValueError, match="got 0 prompt and 2 response tokens"):
        module.token_logprobs(prompt[:0], tokens)


def test_schedule_by_hand() -> None:
    # 20 steps, 10% warm-up = 2 steps: half the peak, the peak, then a cosine over 18 steps.
    config = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1, final_ratio=0.1)
    rates = [learning_rate(step, config, num_steps=20) for step in range(1, 21)]
    assert rates[:2] == [0.5, 1.0]
    # Half-way, at step 2 + 9, the cosine is 0: 0.1 + 0.9 / 2
    assert rates[10] == pytest.approx(0.55)
    assert rates[19] == pytest.approx(0.1)
    assert rates[2] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 18)) / 2)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert learning_rate(30, config, num_steps=20) == pytest.approx(0.1)


def test_constant_schedule_and_odd_ends() -> None:
    constant = OptimizerConfig(learning_rate=2.0, schedule=Schedule.CONSTANT, warmup_ratio=0.5)
    assert [learning_rate(step, constant, num_steps=4) for step in range(1, 5)] == [1.0, 2.0, 2.0, 2.0]
    assert learning_rate(
        1, OptimizerConfig(learning_rate=1.0, warmup_ratio=0.0), num_steps=1
    ) == pytest.approx(0.1)
    assert learning_rate(3, OptimizerConfig(learning_rate=1.0, warmup_ratio=1.0), num_steps=3) == 1.0
    # 0.1 * 30 is a little more than 3 in floating point, and means 3.
    assert learning_rate(3, OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1), num_steps=30) == 1.0
    with pytest.raises(ValueError, match="got step 0"):
        learning_rate(0, constant, num_steps=4)


def test_norms_do_not_decay(folder: Path) -> None:
    model = load_student(folder / "tied", torch.float32)
    decay, rest = parameter_groups(model, weight_decay=0.3)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    grouped = {id(parameter) for group in (decay, rest) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters()}
    assert all(parameter.ndim == 1 for parameter in rest["params"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_end_the_run(value: float) -> None:
    require_finite(1.0, "loss", learner_step=7, rank=2)
    with pytest.raises(RunFailedError, match=r"(?s)The loss is not a finite number.*learner step 7, rank 2"):
        require_finite(value, "loss", learner_step=7, rank=2)


def test_steps_come_in_order() -> None:
    require_next_step(4, policy_version=3)
    with pytest.raises(ValueError, match="got a batch for learner step 3; expected 4"):
        require_next_step(3, policy_version=3)
