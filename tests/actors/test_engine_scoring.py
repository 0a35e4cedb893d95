"""Scores and verdicts of a real vLLM engine on the shipped teacher, against transformers' own passes."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from actors.engine import Engine, EngineOptions, SamplingOptions
from actors.engine_scoring import EngineScoring
from trd_ray.batching import decode_hidden
from trd_ray.choices import DType
from trd_ray.models import load_output_head, load_student
from trd_ray.scoring import HiddenScorer, ScoreRequest
from trd_ray.target_agreement import compare_targets
from trd_ray.templates import TemplateName
from trd_ray.testbed.corpus import make_user_message
from trd_ray.testbed.paths import teacher_path
from trd_ray.testbed.tokenizer import build_tokenizer
from trd_ray.testbed.training import encode, wrap_user_message
from trd_ray.types import IntArray, StopReason, TeacherCompletion, TopKTargets

pytest.importorskip("vllm")

T = TypeVar("T")
NUM_TOKENS = 60
TOP_K = 20
# float16 keeps 11 bits of a log-probability, and those of the first 20 of 144 tokens lie above -32:
# half a unit in the last place is 2**-7 there. Float32 sums in another order add far less.
ROUNDING = 2.0**-6


@dataclass
class Rig:
    loop: asyncio.AbstractEventLoop
    engine: Engine
    scoring: EngineScoring
    model: torch.nn.Module

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    @torch.no_grad()
    def logprobs(self, context: IntArray, tokens: IntArray) -> torch.Tensor:
        """[T, V] of transformers' own pass."""
        ids = torch.from_numpy(np.concatenate([context, tokens])).long()
        return self.model(ids[None]).logits[0, len(context) - 1 : -1].log_softmax(-1)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    path = teacher_path()
    options = EngineOptions(model=str(path), max_model_len=512, kv_cache_gib=0.125, threads=1, block_size=32)
    loop = asyncio.new_event_loop()
    engine = Engine(options)
    yield Rig(loop, engine, EngineScoring(engine), load_student(path, torch.float32).eval())
    loop.run_until_complete(engine.shutdown())
    loop.close()
    assert not [c.name for c in multiprocessing.active_children() if "EngineCore" in c.name]


def random_ids(num: int, seed: int) -> IntArray:
    return np.random.default_rng(seed).integers(5, 100, num, dtype=np.int32)


def question() -> IntArray:
    """A prompt that the shipped models answer."""
    message = wrap_user_message(make_user_message(TemplateName.STUDENT, (3, 4, 5)))
    return np.asarray(encode(build_tokenizer(), [message])[0], dtype=np.int32)


def make(rig: Rig, prompt: IntArray, name: str, *, top_k: int | None, **changes: Any) -> TeacherCompletion:
    options = {"max_tokens": NUM_TOKENS, "seed": 3, "ignore_eos": True, **changes}
    return rig.run(rig.scoring.generate(prompt, SamplingOptions(**options), name, top_k=top_k))


def reference(logprobs_TV: torch.Tensor, tokens: IntArray, k: int) -> TopKTargets:
    top = logprobs_TV.topk(k)
    own = logprobs_TV.gather(1, torch.from_numpy(tokens).long()[:, None])[:, 0]
    return TopKTargets(
        topk_ids=top.indices.numpy().astype(np.int32),
        topk_logprobs=top.values.numpy(),
        token_logprobs=own.numpy(),
    )


def assert_agree(one: TopKTargets, other: TopKTargets, *, rounding: float = ROUNDING) -> None:
    apart = compare_targets(one, other)
    assert apart.token_logprob < 1e-3
    assert apart.topk_logprob < rounding
    assert apart.shared_logprob < rounding
    assert apart.unshared_margin < rounding


def test_fused_agrees_with_prefill(rig: Rig) -> None:
    prompt = random_ids(40, seed=0)
    made = make(rig, prompt, "fused", top_k=TOP_K, temperature=0.8, top_p=0.9)
    assert made.targets is not None
    assert made.targets.topk_ids.shape == (NUM_TOKENS, TOP_K)
    assert made.targets.topk_ids.dtype == np.int32
    assert made.targets.topk_logprobs.dtype == np.float16
    assert np.array_equal(made.targets.token_logprobs, made.completion.logprobs)
    assert (np.diff(made.targets.topk_logprobs.astype(np.float32), axis=1) <= 0).all()
    prefilled = rig.run(rig.scoring.score(prompt, made.completion.token_ids, top_k=TOP_K))
    assert_agree(made.targets, prefilled)
    # A shift by one position, the likeliest mistake, is far outside of the tolerance.
    assert np.abs(made.targets.token_logprobs[1:] - prefilled.token_logprobs[:-1]).max() > 0.5


def test_prefill_agrees_with_hidden_states(rig: Rig) -> None:
    prompt, tokens = random_ids(40, seed=1), random_ids(NUM_TOKENS, seed=2)
    prefilled = rig.run(rig.scoring.score(prompt, tokens, top_k=TOP_K))
    scorer = HiddenScorer.load(
        teacher_path(), dtype=DType.FLOAT32, hidden_dtype=DType.FLOAT32, batch_tokens=1000
    )
    hidden = scorer.score([ScoreRequest(context_ids=prompt, token_ids=tokens)])[0]
    logits_TV = decode_hidden(hidden) @ load_output_head(teacher_path(), torch.float32).T
    assert_agree(prefilled, reference(logits_TV.log_softmax(-1), tokens, TOP_K))


def test_fused_agrees_with_hidden_states(rig: Rig) -> None:
    prompt = random_ids(40, seed=3)
    made = make(rig, prompt, "fused hidden", top_k=TOP_K)
    tokens = made.completion.token_ids
    assert made.targets is not None
    assert_agree(made.targets, reference(rig.logprobs(prompt, tokens), tokens, TOP_K))


def test_requests_of_one_step_keep_their_own_k(rig: Rig) -> None:
    """A step's arrays are as wide as its largest K."""

    async def together() -> list[TeacherCompletion]:
        return await asyncio.gather(
            *(
                rig.scoring.generate(
                    random_ids(20, seed=k),
                    SamplingOptions(max_tokens=9, seed=k, ignore_eos=True),
                    f"k{k}",
                    top_k=k,
                )
                for k in (0, 3, 50, 10_000)
            )
        )

    for made, k in zip(rig.run(together()), (0, 3, 50, 144), strict=True):
        assert made.targets is not None
        assert made.targets.topk_ids.shape == (9, k)
        np.testing.assert_array_equal(made.targets.token_logprobs, made.completion.logprobs)
    assert make(rig, random_ids(20, seed=0), "none", top_k=None).targets is None


def test_token_logprobs_are_the_models_also_when_the_context_is_cached(rig: Rig) -> None:
    context, tokens = random_ids(130, seed=4), random_ids(70, seed=5)
    want = reference(rig.logprobs(context, tokens), tokens, 1).token_logprobs
    for _ in range(2):
        np.testing.assert_allclose(rig.run(rig.scoring.token_logprobs(context, tokens)), want, atol=1e-3)


def test_nothing_to_score_is_refused(rig: Rig) -> None:
    none, some = np.zeros(0, dtype=np.int32), random_ids(3, seed=0)
    for context, tokens in ((none, some), (some, none)):
        with pytest.raises(ValueError, match="at least one of each"):
            rig.run(rig.scoring.score(context, tokens, top_k=1))


@pytest.mark.parametrize("num_context", [31, 32, 33, 64, 95, 100])
def test_verdict_is_that_of_plain_passes_around_cache_blocks(rig: Rig, num_context: int) -> None:
    """Contexts end before, at and behind a block of 32; each is judged cold and cached."""
    context = random_ids(num_context, seed=num_context)
    for seed in range(6):
        drafted = make(rig, context, f"draft {seed}", top_k=None, max_tokens=5, seed=seed, temperature=1.5)
        draft = drafted.completion.token_ids
        logprobs_TV = rig.logprobs(context, draft)
        inside = [int(t) in row.topk(3).indices.tolist() for t, row in zip(draft, logprobs_TV, strict=True)]
        num = inside.index(False) if False in inside else 5
        for _ in range(2):
            verdict = rig.run(rig.scoring.verify(context, draft, top_k=3, temperature=0.0, seed=seed))
            assert verdict.num_accepted == num
            if num == 5:
                assert verdict.replacement is None
            else:
                assert verdict.replacement == int(logprobs_TV[num].argmax())


def test_replacement_is_a_sample_of_the_whole_distribution_at_the_temperature(rig: Rig) -> None:
    context = random_ids(50, seed=9)
    logprobs_V = rig.logprobs(context, np.asarray([5], dtype=np.int32))[0]
    refused = np.asarray([int(logprobs_V.argmin())], dtype=np.int32)
    num = 400

    async def draws(temperature: float) -> np.ndarray:
        verdicts = await asyncio.gather(
            *(
                rig.scoring.verify(context, refused, top_k=1, temperature=temperature, seed=i)
                for i in range(num)
            )
        )
        return np.asarray([v.replacement for v in verdicts])

    for temperature in (0.2, 2.0):
        want = (logprobs_V / temperature).softmax(-1).numpy()
        got = np.bincount(rig.run(draws(temperature)), minlength=len(want)) / num
        # Total variation of 400 draws from n likely tokens is about sqrt(n / (2 pi 400)) at most.
        likely = 1.0 / float((want**2).sum())
        assert 0.5 * np.abs(got - want).sum() < 3 * np.sqrt(max(likely, 2.0) / (6.3 * num)) + 0.02


def test_a_replacement_that_ends_is_told(rig: Rig) -> None:
    answer = make(rig, question(), "answer", top_k=None, max_tokens=120, temperature=0.0, ignore_eos=False)
    tokens = answer.completion.token_ids
    assert answer.completion.stop_reason is StopReason.STOP
    for position, ends in ((len(tokens) - 1, True), (len(tokens) - 2, False)):
        bad = np.asarray([7 if tokens[position] != 7 else 8, 9], dtype=np.int32)
        context = np.concatenate([question(), tokens[:position]])
        verdict = rig.run(rig.scoring.verify(context, bad, top_k=1, temperature=0.0, seed=0))
        assert (verdict.num_accepted, verdict.replacement) == (0, tokens[position])
        assert verdict.replacement_ends is ends
