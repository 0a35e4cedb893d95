"""Random training samples for tests."""

from __future__ import annotations

import numpy as np

from trd_ray.types import TeacherHidden, TrainingSample


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
