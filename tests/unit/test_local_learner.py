"""The learner in one process: independent of splits, resumable, and stopped by a NaN."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import make_tiny_qwen3
from tests.unit.training_samples import make_samples
from trd_ray.batching import make_training_batch, values_by_sample
from trd_ray.choices import ScoreMethod
from trd_ray.config import LearnerConfig, MethodConfig, OptimizerConfig
from trd_ray.errors import CheckpointError, RunFailedError
from trd_ray.learner_checkpoint import HEADER_FILE
from trd_ray.local.learner import LocalLearner
from trd_ray.types import TeacherHidden, TrainingBatch

LENGTHS = [(3, 12), (2, 1), (5, 2), (4, 7), (2, 30)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_tiny_qwen3(root / "student", seed=0)
    make_tiny_qwen3(root / "teacher", seed=1)
    return root


def make_learner(models: Path, *, record_token_values: bool = True) -> LocalLearner:
    return LocalLearner(
        LearnerConfig(optimizer=OptimizerConfig(learning_rate=3e-3), record_token_values=record_token_values),
        method=MethodConfig(),
        score=ScoreMethod.HIDDEN,
        student=models / "student",
        teacher=models / "teacher",
        num_steps=4,
        seed=0,
    )


def make_batch(learner_step: int, *, num_ranks: int = 1, micro_batch_tokens: int = 1000) -> TrainingBatch:
    samples = make_samples(LENGTHS, vocab_size=128, hidden_width=64)
    return make_training_batch(
        samples, learner_step=learner_step, num_ranks=num_ranks, micro_batch_tokens=micro_batch_tokens
    )


async def test_between_steps_the_module_is_ready_to_generate(models: Path) -> None:
    learner = make_learner(models)
    assert not learner.module.training
    await learner.learn(make_batch(1))
    assert not learner.module.training


async def test_split_changes_nothing_and_the_loss_falls(models: Path) -> None:
    one, many = make_learner(models), make_learner(models)
    losses = []
    for step in (1, 2, 3):
        first = await one.learn(make_batch(step))
        second = await many.learn(make_batch(step, num_ranks=3, micro_batch_tokens=30))
        assert first.loss == pytest.approx(second.loss, rel=1e-4)
        assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-4)
        assert (first.learner_step, first.policy_version, first.num_loss_tokens) == (step, step, 52)
        losses.append(first.loss)
    assert losses == sorted(losses, reverse=True)


async def test_each_token_is_recorded_wherever_its_sample_was_packed(models: Path) -> None:
    one, many = make_learner(models), make_learner(models)
    parts = []
    for learner, split in ((one, {}), (many, {"num_ranks": 3, "micro_batch_tokens": 30})):
        samples = make_samples(LENGTHS, vocab_size=128, hidden_width=64)
        samples = [replace(sample, index=index) for index, sample in enumerate(samples)]
        batch = make_training_batch(
            samples, learner_step=1, **({"num_ranks": 1, "micro_batch_tokens": 1000} | split)
        )
        step = await learner.learn(batch)
        by_sample = values_by_sample(batch, step.token_values)
        assert [len(part.divergence) for part in by_sample] == [len(s.response_ids) for s in samples]
        # The loss is the mean over tokens; float16 keeps three digits of each.
        every = np.concatenate([part.divergence for part in by_sample]).astype(np.float64)
        assert every.mean() == pytest.approx(step.loss, rel=1e-3)
        means = [part.student_logprobs.astype(np.float64).mean() for part in by_sample]
        assert np.mean(means) == pytest.approx(step.student_logprob_mean, rel=1e-3)
        parts.append(by_sample)
    for first, second in zip(*parts, strict=True):
        np.testing.assert_allclose(first.divergence, second.divergence, rtol=2e-3, atol=1e-4)
    assert len({float(part.divergence[0]) for part in parts[0]}) > 1, "samples could not be told apart"


async def test_nothing_is_recorded_where_it_is_not_asked_for(models: Path) -> None:
    learner = make_learner(models, record_token_values=False)
    assert (await learner.learn(make_batch(1))).token_values is None


async def test_resume_continues_exactly(models: Path, tmp_path: Path) -> None:
    learner = make_learner(models)
    await learner.learn(make_batch(1))
    await learner.learn(make_batch(2))
    await learner.save(tmp_path / "step_2")
    saved = {name: tensor.clone() for name, tensor in learner.named_weights()}
    expected = [(await learner.learn(make_batch(step))).loss for step in (3, 4)]

    resumed = make_learner(models)
    assert await resumed.load(tmp_path / "step_2") == resumed.policy_version == 2
    for name, tensor in resumed.named_weights():
        assert torch.equal(tensor, saved[name])
    assert [(await resumed.learn(make_batch(step))).loss for step in (3, 4)] == expected
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "step_2" / "hf")
    assert torch.equal(hf.get_input_embeddings().weight, saved["model.embed_tokens.weight"])


async def test_saving_into_a_folder_with_other_files_keeps_them(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step_1"
    folder.mkdir()
    (folder / "other.json").write_text("{}")
    learner = make_learner(models)
    await learner.save(folder)
    await learner.save(folder)
    assert (folder / "other.json").is_file()
    assert not list(tmp_path.glob("*.partial"))
    assert await make_learner(models).load(folder) == 0


async def test_torn_and_foreign_checkpoints_are_refused(models: Path, tmp_path: Path) -> None:
    learner = make_learner(models)
    with pytest.raises(CheckpointError, match="no such folder"):
        await learner.load(tmp_path / "missing")
    await learner.save(tmp_path / "torn")
    header = (tmp_path / "torn" / HEADER_FILE).read_text()
    (tmp_path / "torn" / HEADER_FILE).write_text(header.replace('"local"', '"deepspeed"'))
    with pytest.raises(CheckpointError, match="kind = deepspeed"):
        await learner.load(tmp_path / "torn")
    (tmp_path / "torn" / HEADER_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match="Unreadable checkpoint header"):
        await learner.load(tmp_path / "torn")
    (tmp_path / "torn" / HEADER_FILE).unlink()
    with pytest.raises(CheckpointError, match="not written to the end"):
        await learner.load(tmp_path / "torn")


async def test_a_nan_stops_the_step_before_the_weights_change(models: Path) -> None:
    learner = make_learner(models)
    before = {name: tensor.clone() for name, tensor in learner.named_weights()}
    batch = make_batch(1, num_ranks=2)
    first, *others = batch.micro_batches[1][0]
    broken = TeacherHidden(hidden=np.full_like(first.target.hidden, np.nan))
    poisoned = ((replace(first, target=broken), *others),)
    with pytest.raises(RunFailedError, match="learner step 1, rank 1"):
        await learner.learn(replace(batch, micro_batches=(batch.micro_batches[0], poisoned)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.named_weights())
    assert learner.policy_version == 0


async def test_a_gradient_that_is_not_finite_stops_the_step_too(models: Path) -> None:
    learner = make_learner(models)
    before = {name: tensor.clone() for name, tensor in learner.named_weights()}
    learner.module.model.get_decoder().norm.weight.register_hook(lambda gradient: gradient * np.nan)
    with pytest.raises(RunFailedError, match=r"(?s)gradient norm is not a finite number.*learner step 1"):
        await learner.learn(make_batch(1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.named_weights())


async def test_weights_are_named_as_in_the_model_folder(models: Path) -> None:
    names = [name for name, _ in make_learner(models).named_weights()]
    assert names[0] == "model.embed_tokens.weight"
    assert "lm_head.weight" not in names
    assert len(names) == len(set(names))


async def test_probe(models: Path) -> None:
    logprobs = make_learner(models).probe_logprobs(np.array([1, 2], np.int32), np.array([3, 4, 5], np.int32))
    assert logprobs.shape == (3,)
    assert (logprobs < 0).all()
