"""How top-k targets travel, how they are compared, and the local engine that makes them."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.tiny_models import make_tiny_qwen3
from trd_ray.config import SamplingConfig, SpeculativeConfig
from trd_ray.id_packing import pack_ids, unpack_ids
from trd_ray.local.engine import LocalEngine, LocalGenerator, LocalTeacher
from trd_ray.models import load_student
from trd_ray.speculative import speculate
from trd_ray.target_agreement import compare_targets
from trd_ray.types import IntArray, Problem, Prompt, TopKTargets

CONTEXT = np.arange(5, 17, dtype=np.int32)


def targets(ids: list[list[int]], logprobs: list[list[float]], own: list[float]) -> TopKTargets:
    return TopKTargets(
        topk_ids=np.asarray(ids, dtype=np.int32),
        topk_logprobs=np.asarray(logprobs, dtype=np.float32),
        token_logprobs=np.asarray(own, dtype=np.float32),
    )


@pytest.mark.parametrize(
    ("largest", "num_bits"),
    [(0, 0), (1, 1), (143, 8), (256, 9), (65_535, 16), (65_536, 17), (151_935, 18), (2**31 - 1, 31)],
)
def test_ids_take_the_bits_that_the_largest_needs_and_come_back(largest: int, num_bits: int) -> None:
    ids = np.random.default_rng(0).integers(0, largest, (5, 16), dtype=np.int32, endpoint=True)
    ids[0, 0] = largest
    packed = pack_ids(ids)
    assert packed.low.nbytes + packed.planes.nbytes == num_bits * 80 // 8
    assert np.array_equal(unpack_ids(packed), ids)
    assert unpack_ids(packed).dtype == np.int32
    odd = ids[:, :13]
    assert np.array_equal(unpack_ids(pack_ids(odd)), odd)


def test_no_ids_and_negative_ids() -> None:
    assert unpack_ids(pack_ids(np.zeros((3, 0), dtype=np.int32))).shape == (3, 0)
    with pytest.raises(ValueError, match="smallest id is -1"):
        pack_ids(np.asarray([-1], dtype=np.int32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_pickled_record_is_the_same(dtype: type) -> None:
    rng = np.random.default_rng(0)
    record = TopKTargets(
        topk_ids=rng.integers(0, 151_936, (100, 64), dtype=np.int32),
        topk_logprobs=-rng.random((100, 64)).astype(dtype),
        token_logprobs=-rng.random(100).astype(np.float32),
    )
    dumped = pickle.dumps(record, protocol=5)
    back = pickle.loads(dumped)
    assert back.topk_logprobs.dtype == dtype
    for name in ("topk_ids", "topk_logprobs", "token_logprobs"):
        assert np.array_equal(getattr(back, name), getattr(record, name))
    assert len(dumped) < 100 * (64 * (18 / 8 + np.dtype(dtype).itemsize) + 4) + 1000


def test_other_number_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="are float64, not float16 or 32"):
        TopKTargets(
            topk_ids=np.zeros((1, 1), dtype=np.int32),
            topk_logprobs=np.zeros((1, 1), dtype=np.float64),
            token_logprobs=np.zeros(1, dtype=np.float32),
        )


def test_a_swap_of_equally_likely_tokens_is_no_disagreement_and_another_token_is() -> None:
    one = targets([[1, 2, 3]], [[-1.0, -2.0, -2.0]], [-1.0])
    swapped = targets([[1, 3, 2]], [[-1.0, -2.0, -2.0]], [-1.0])
    assert compare_targets(one, swapped).shared_logprob == 0.0
    wrong = targets([[1, 2, 9]], [[-0.5, -2.0, -2.25]], [-1.5])
    apart = compare_targets(one, wrong)
    assert (apart.token_logprob, apart.topk_logprob, apart.shared_logprob) == (0.5, 0.5, 0.5)
    # Token 3 at -2 lies 0.25 above the other's last; token 9 at -2.25 lies 0.25 below this one's.
    assert apart.unshared_margin == 0.25


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen3(tmp_path_factory.mktemp("model"), seed=2)


@pytest.fixture(scope="module")
def model(model_path: Path) -> torch.nn.Module:
    return load_student(model_path, torch.float32)


@pytest.fixture
def engine(model_path: Path, model: torch.nn.Module) -> LocalEngine:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    return LocalEngine(model, tokenizer, end_ids=frozenset({2}), max_batch=8)  # type: ignore[arg-type]


@torch.no_grad()
def reference(model: torch.nn.Module, context: IntArray, tokens: IntArray) -> torch.Tensor:
    """[T, V] log-probabilities of one unpadded pass."""
    ids = torch.from_numpy(np.concatenate([context, tokens])).long()
    return model(ids[None]).logits[0, len(context) - 1 : -1].log_softmax(-1)


async def test_local_generation_and_score_agree_with_a_plain_pass(
    model: torch.nn.Module, engine: LocalEngine
) -> None:
    teacher = LocalTeacher(engine, None, top_k=7)
    contexts = [CONTEXT, CONTEXT[:5]]
    made = await asyncio.gather(
        *(teacher.generate(c, SamplingConfig(max_tokens=15), 1, top_k=7) for c in contexts)
    )
    scored = await asyncio.gather(
        *(teacher.score(c, m.completion.token_ids) for c, m in zip(contexts, made, strict=True))
    )
    for context, one, score in zip(contexts, made, scored, strict=True):
        tokens = one.completion.token_ids
        top = reference(model, context, tokens).topk(7)
        want = TopKTargets(
            topk_ids=top.indices.numpy().astype(np.int32),
            topk_logprobs=top.values.numpy(),
            token_logprobs=one.completion.logprobs,
        )
        assert one.targets is not None
        assert isinstance(score, TopKTargets)
        for record in (one.targets, score):
            apart = compare_targets(record, want)
            assert max(apart.token_logprob, apart.topk_logprob, apart.unshared_margin) < 1e-4
        logprobs = await LocalGenerator(engine).token_logprobs(context, tokens)
        np.testing.assert_allclose(logprobs, one.completion.logprobs, atol=1e-4)
    assert (await teacher.generate(CONTEXT, SamplingConfig(max_tokens=2), 1)).targets is None


async def test_local_verdict_is_that_of_a_plain_pass(model: torch.nn.Module, engine: LocalEngine) -> None:
    teacher = LocalTeacher(engine, None)
    logprobs_V = reference(model, CONTEXT, CONTEXT[:1])[0]
    best, second, worst = (int(logprobs_V.topk(2).indices[i]) for i in (0, 1, 1))
    worst = int(logprobs_V.argmin())
    for token, top_k, stays in ((best, 1, True), (second, 1, False), (second, 2, True), (worst, 2, False)):
        draft = np.asarray([token], dtype=np.int32)
        verdict = await teacher.verify(CONTEXT, draft, top_k=top_k, temperature=0.0, seed=0)
        assert (verdict.num_accepted, verdict.replacement) == ((1, None) if stays else (0, best))


async def test_local_replacement_follows_the_temperature(model: torch.nn.Module, engine: LocalEngine) -> None:
    teacher = LocalTeacher(engine, None)
    logprobs_V = reference(model, CONTEXT, CONTEXT[:1])[0]
    draft = np.asarray([int(logprobs_V.argmin())], dtype=np.int32)
    verdicts = await asyncio.gather(
        *(teacher.verify(CONTEXT, draft, top_k=1, temperature=0.5, seed=i) for i in range(600))
    )
    got = np.bincount([v.replacement for v in verdicts if v.replacement is not None], minlength=128) / 600
    want = (logprobs_V / 0.5).softmax(-1).numpy()
    plain = logprobs_V.exp().numpy()
    assert np.abs(got - want).sum() < 0.5 * np.abs(got - plain).sum()
    assert abs(got[want.argmax()] - want.max()) < 4 * np.sqrt(want.max() / 600)


async def test_every_kept_token_lies_in_the_teachers_top_k(
    model: torch.nn.Module, engine: LocalEngine, tmp_path: Path
) -> None:
    """Against a slow reading of the definition: one whole pass a position."""
    student = load_student(make_tiny_qwen3(tmp_path, seed=8), torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    drafter = LocalEngine(student, tokenizer, end_ids=frozenset({2}), max_batch=8)
    prompt = Prompt(
        problem=Problem(prompt_id="0", problem="p", answer="a"),
        epoch=0, sample_index=0, token_ids=CONTEXT[:6], seed=0,
    )  # fmt: skip
    made = await speculate(
        prompt,
        CONTEXT,
        generator=LocalGenerator(drafter),
        teacher=LocalTeacher(engine, None),
        options=SpeculativeConfig(block_tokens=3, top_k=40, temperature=0.0),
        sampling=SamplingConfig(max_tokens=24),
        seed=1,
    )
    assert made.num_kept > 0
    assert made.num_replaced > 0
    for position, token in enumerate(made.token_ids):
        logprobs_V = reference(
            model, np.concatenate([CONTEXT, made.token_ids[:position]]), made.token_ids[:1]
        )
        # A replacement at temperature 0 is the most likely token, so it lies inside too.
        assert int(token) in logprobs_V[0].topk(40).indices.tolist()
