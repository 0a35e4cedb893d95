"""The scorer's states equal an unpadded forward, and give the model's own logits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_models import make_tiny_qwen3
from trd_ray.batching import decode_hidden
from trd_ray.choices import DType
from trd_ray.models import load_output_head, load_student
from trd_ray.scoring import AsyncScorer, HiddenScorer, ScoreRequest
from trd_ray.types import TeacherHidden

LENGTHS = ((3, 9), (1, 1), (12, 2), (5, 20), (7, 7))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen3(tmp_path_factory.mktemp("teacher"), seed=3)


@pytest.fixture(scope="module")
def requests() -> list[ScoreRequest]:
    generator = np.random.default_rng(0)
    return [
        ScoreRequest(
            context_ids=generator.integers(0, 128, num_context, dtype=np.int32),
            token_ids=generator.integers(0, 128, num_tokens, dtype=np.int32),
        )
        for num_context, num_tokens in LENGTHS
    ]


def make_scorer(path: Path, *, batch_tokens: int = 1000, hidden_dtype: DType = DType.FLOAT32) -> HiddenScorer:
    return HiddenScorer.load(path, dtype=DType.FLOAT32, hidden_dtype=hidden_dtype, batch_tokens=batch_tokens)


@pytest.mark.parametrize("batch_tokens", [1, 40, 1000])
def test_states_give_the_logits_of_an_unpadded_forward(
    model_path: Path, requests: list[ScoreRequest], batch_tokens: int
) -> None:
    model = load_student(model_path, torch.float32)
    head = load_output_head(model_path, torch.float32)
    scored = make_scorer(model_path, batch_tokens=batch_tokens).score(requests)
    for request, record in zip(requests, scored, strict=True):
        tokens = torch.from_numpy(np.concatenate([request.context_ids, request.token_ids])).long()
        with torch.no_grad():
            logits = model(tokens[None]).logits[0, len(request.context_ids) - 1 : -1]
        assert record.hidden.shape == (len(request.token_ids), 64)
        got = torch.log_softmax(decode_hidden(record) @ head.T, dim=-1)
        torch.testing.assert_close(got, torch.log_softmax(logits, dim=-1), rtol=1e-4, atol=1e-4)


def test_shift_by_one_would_be_seen(model_path: Path, requests: list[ScoreRequest]) -> None:
    record = make_scorer(model_path).score(requests[:1])[0]
    assert not np.allclose(record.hidden[1:], record.hidden[:-1], rtol=1e-2)


def test_bfloat16_bits_round_the_same_states(model_path: Path, requests: list[ScoreRequest]) -> None:
    exact = make_scorer(model_path).score(requests)
    rounded = make_scorer(model_path, hidden_dtype=DType.BFLOAT16).score(requests)
    for full, half in zip(exact, rounded, strict=True):
        assert half.hidden.dtype == np.uint16
        assert torch.equal(decode_hidden(half), decode_hidden(full).to(torch.bfloat16))


def test_bfloat16_model(model_path: Path, requests: list[ScoreRequest]) -> None:
    scorer = HiddenScorer.load(
        model_path, dtype=DType.BFLOAT16, hidden_dtype=DType.BFLOAT16, batch_tokens=100
    )
    exact = make_scorer(model_path).score(requests)
    for full, half in zip(exact, scorer.score(requests), strict=True):
        difference = decode_hidden(half).float() - decode_hidden(full)
        assert difference.abs().mean() < 0.05 * decode_hidden(full).abs().mean()


def test_broken_requests_are_refused(model_path: Path) -> None:
    empty, one = np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int32)
    scorer = make_scorer(model_path)
    assert scorer.score([]) == []
    for request in (
        ScoreRequest(context_ids=empty, token_ids=one),
        ScoreRequest(context_ids=one, token_ids=empty),
    ):
        with pytest.raises(ValueError, match=r"request 0 has \d context and \d response tokens"):
            scorer.score([request])


class RecordingScorer(HiddenScorer):
    """Remembers how many requests were computed together."""

    def __init__(self, inner: HiddenScorer) -> None:
        self.__dict__.update(inner.__dict__)
        self.batches: list[int] = []

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherHidden]:
        self.batches.append(len(requests))
        return super().score(requests)


async def test_concurrent_calls_are_computed_together_and_in_order(
    model_path: Path, requests: list[ScoreRequest]
) -> None:
    recording = RecordingScorer(make_scorer(model_path))
    scorer = AsyncScorer(recording, max_batch=4)
    got = await asyncio.gather(*(scorer.score(item.context_ids, item.token_ids) for item in requests))
    assert recording.batches == [4, 1]
    for record, expected in zip(got, make_scorer(model_path).score(requests), strict=True):
        np.testing.assert_allclose(record.hidden, expected.hidden, rtol=1e-4, atol=1e-5)


async def test_an_error_reaches_its_caller(model_path: Path) -> None:
    scorer = AsyncScorer(make_scorer(model_path))
    empty = np.zeros(0, dtype=np.int32)
    with pytest.raises(ValueError, match="request 0"):
        await scorer.score(empty, empty)
