"""Random training samples for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trd_ray.types import DeferredTarget, FloatArray, IntArray, TeacherHidden, TopKTargets, TrainingSample


def make_sample(
    *,
    num_prompt: int,
    num_response: int,
    seed: int = 0,
    vocab_size: int = 100,
    hidden_width: int = 4,
) -> TrainingSample:
    """Random tokens and random float32 hidden states; the same seed gives the same sample."""
    generator = np.random.default_rng(seed)
    return TrainingSample(
        prompt_ids=generator.integers(0, vocab_size, num_prompt, dtype=np.int32),
        response_ids=generator.integers(0, vocab_size, num_response, dtype=np.int32),
        target=TeacherHidden(
            hidden=generator.standard_normal((num_response, hidden_width)).astype(np.float32)
        ),
    )


def make_samples(
    lengths: list[tuple[int, int]], *, seed: int = 0, vocab_size: int = 100, hidden_width: int = 4
) -> list[TrainingSample]:
    """One sample for each (prompt length, response length)."""
    return [
        make_sample(
            num_prompt=num_prompt, num_response=num_response, seed=seed * 1000 + index,
            vocab_size=vocab_size, hidden_width=hidden_width,
        )
        for index, (num_prompt, num_response) in enumerate(lengths)
    ]  # fmt: skip


def with_topk(sample: TrainingSample, *, top_k: int, vocab_size: int, seed: int = 0) -> TrainingSample:
    """`sample` with the top-k log-probabilities of a random distribution as its target."""
    generator = np.random.default_rng(seed)
    num = len(sample.response_ids)
    logits = generator.standard_normal((num, vocab_size)).astype(np.float32) * 2
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-logprobs, axis=1)[:, :top_k].astype(np.int32)
    target = TopKTargets(
        topk_ids=ids,
        topk_logprobs=np.take_along_axis(logprobs, ids, axis=1),
        token_logprobs=logprobs[np.arange(num), sample.response_ids],
    )
    return replace(sample, target=target)


def deferred(sample: TrainingSample, context_ids: IntArray) -> TrainingSample:
    """`sample` for a teacher that the learner runs after `context_ids`."""
    return replace(sample, target=DeferredTarget(context_ids=context_ids))


def rewarded(sample: TrainingSample, *, seed: int) -> TrainingSample:
    """`sample` without a teacher, with the behaviour policy's logprobs and an advantage."""
    generator = np.random.default_rng(seed)
    logprobs: FloatArray = -generator.uniform(1.0, 6.0, len(sample.response_ids)).astype(np.float32)
    return replace(
        sample, target=None, rollout_logprobs=logprobs, advantage=float(generator.standard_normal())
    )
