"""The learner's memory plan against bytes that torch's allocator counts in a step of the real module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from benchmarks.live_bytes import peak_bytes, tensor_bytes
from tests.tiny_models import make_tiny_qwen3
from tests.unit.training_samples import make_samples, with_topk
from trd_ray.batching import make_training_batch
from trd_ray.choices import DType, Normalization, ScoreMethod, Support
from trd_ray.collate import TokenWeights
from trd_ray.config import LearnerConfig, LoraConfig, MethodConfig
from trd_ray.memory_plan import learner_parts
from trd_ray.model_files import model_facts
from trd_ray.models import torch_dtype
from trd_ray.teacher_side import LearnerTeacher, micro_batch_loss
from trd_ray.training import load_distill_module, make_optimizer

VOCAB, WIDTH, TOP_K = 2048, 192, 16
TOKENS = 512
TOLERANCE = 0.2


@dataclass(frozen=True, kw_only=True)
class Measured:
    weights: int
    gradients: int
    optimizer: int
    peak: int
    """Of a second micro-batch, beside weights, gradients and optimizer."""


def measure(path: Path, learner: LearnerConfig, *, score: ScoreMethod, method: MethodConfig) -> Measured:
    module = load_distill_module(
        learner, method=method, score=score, student=path, teacher=path, dtype=learner.dtype
    )
    teacher = LearnerTeacher(
        method=method, score=score, lora=learner.lora, student=path, teacher=path,
        dtype=torch_dtype(learner.dtype), device=torch.device("cpu"), keeps_moving=True,
    )  # fmt: skip
    optimizer = make_optimizer(module, learner.optimizer)
    samples = make_samples([(32, 96)] * 4, vocab_size=100, hidden_width=WIDTH)
    if score is not ScoreMethod.HIDDEN:
        samples = [with_topk(sample, top_k=TOP_K, vocab_size=VOCAB) for sample in samples]
    batch = make_training_batch(samples, learner_step=1, num_ranks=1, micro_batch_tokens=TOKENS)
    ((micro_batch,),) = batch.micro_batches

    def accumulate() -> None:
        tensors = teacher.collate(micro_batch, TokenWeights.of(batch, Normalization.TOKEN, factor=1))
        micro_batch_loss(module, tensors, teacher)[0].backward()

    accumulate()
    optimizer.step()
    # Gradients are there, as in every micro-batch of a step but the first.
    with peak_bytes() as peak:
        accumulate()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return Measured(
        weights=tensor_bytes(module.parameters()),
        gradients=tensor_bytes(p.grad for p in trained if p.grad is not None),
        optimizer=tensor_bytes(state for state in states if state.ndim),
        peak=peak.num_bytes,
    )


CASES = {
    "hidden": LearnerConfig(),
    "narrow": LearnerConfig(),
    "wide": LearnerConfig(),
    "checkpointing": LearnerConfig(activation_checkpointing=True),
    "top_k": LearnerConfig(),
    "lora": LearnerConfig(lora=LoraConfig(rank=16)),
    "bfloat16": LearnerConfig(dtype=DType.BFLOAT16),
}
# Feed-forward widths, in model widths; heads of 64 numbers beyond the model's width.
SHAPES = {"narrow": (8 / 3, 3), "wide": (4, 6)}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_within_a_fifth_of_what_is_allocated(name: str, tmp_path: Path):
    ratio, heads = SHAPES.get(name, (3, 3))
    path = make_tiny_qwen3(
        tmp_path / "model", vocab_size=VOCAB, hidden_size=WIDTH, num_layers=3, num_heads=heads,
        num_kv_heads=3 if heads == 3 else 2, head_dim=64, intermediate_size=round(ratio * WIDTH),
    )  # fmt: skip
    learner = replace(CASES[name], micro_batch_tokens=TOKENS, kl_chunk_size=128)
    by_engine = name == "top_k"
    method = MethodConfig(support=Support.TOP_K, top_k=TOP_K) if by_engine else MethodConfig()
    score = ScoreMethod.FUSED if by_engine else ScoreMethod.HIDDEN
    made = measure(path, learner, score=score, method=method)
    parts = learner_parts(learner, model_facts(path), teacher_logits=not by_engine)
    adapters = parts.pop("adapters (about)", 0)
    assert made.weights == pytest.approx(parts["weights"] + adapters, rel=TOLERANCE)
    assert made.gradients == pytest.approx(parts["gradients"], rel=TOLERANCE)
    if learner.dtype is DType.FLOAT32:
        # DeepSpeed holds its own float32 weights beside the two moments; plain torch, as here, does not.
        assert made.optimizer == pytest.approx(parts["optimizer"] * 2 / 3, rel=TOLERANCE)
    passing = ("activations (about)", "logits chunk", "gradient of the head", "head in float32")
    transient = sum(parts.get(part, 0) for part in passing)
    if not by_engine:
        transient += parts.get("head in float32", 0)  # the teacher's, which is as large here
    print(f"{name}: planned {transient:,}, measured {made.peak:,}: {transient / made.peak:.2f}")
    if learner.activation_checkpointing:
        # The chunk is gone when a block is computed anew, so that the parts are never there together.
        assert made.peak <= transient * (1 + TOLERANCE)
        assert transient - parts["logits chunk"] == pytest.approx(made.peak, rel=TOLERANCE)
    else:
        assert transient == pytest.approx(made.peak, rel=TOLERANCE)


def test_a_plan_that_forgets_a_part_would_be_found(tmp_path: Path):
    path = make_tiny_qwen3(
        tmp_path / "model", vocab_size=VOCAB, hidden_size=WIDTH, num_layers=3, num_heads=3, num_kv_heads=3,
        head_dim=64, intermediate_size=3 * WIDTH,
    )  # fmt: skip
    learner = LearnerConfig(micro_batch_tokens=TOKENS, kl_chunk_size=128)
    made = measure(path, learner, score=ScoreMethod.HIDDEN, method=MethodConfig())
    parts = learner_parts(learner, model_facts(path))
    assert parts["activations (about)"] * 0.75 < made.peak * (1 - TOLERANCE)
    twice = learner_parts(replace(learner, micro_batch_tokens=2 * TOKENS), model_facts(path))
    assert twice["activations (about)"] > made.peak * (1 + TOLERANCE)
