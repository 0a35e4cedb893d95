"""Generation and scoring in this process with transformers: the roles of `--no-ray`."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trd_ray.chat import decode_text
from trd_ray.config import SamplingConfig
from trd_ray.local.sampling import Sampled, SampleRequest, sample
from trd_ray.local.topk import TopKRequest, TopKScore, score_topk
from trd_ray.micro_batcher import MicroBatcher
from trd_ray.scoring import AsyncScorer
from trd_ray.targets import first_outside
from trd_ray.types import (
    Completion,
    DraftVerdict,
    FloatArray,
    IntArray,
    Prompt,
    TeacherCompletion,
    TeacherHidden,
    TopKTargets,
)


class LocalEngine:
    """A transformers model behind the same calls as a vLLM engine. Its owner may change it in place."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_ids: frozenset[int],
        max_batch: int,
    ) -> None:
        self.policy_version = 0
        self._model = model
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._batcher = MicroBatcher(self._compute, max_batch=max_batch)
        self._scores = MicroBatcher(self._score, max_batch=max_batch)

    def _compute(self, requests: Sequence[SampleRequest]) -> Sequence[Sampled]:
        return sample(self._model, requests, end_ids=self._end_ids)

    def _score(self, requests: Sequence[TopKRequest]) -> Sequence[TopKScore]:
        return score_topk(self._model, requests, pad_id=0)

    async def generate(
        self, prompt_ids: IntArray, sampling: SamplingConfig, *, seed: int, top_k: int | None = None
    ) -> TeacherCompletion:
        """One completion of `prompt_ids` [P], with the targets of its tokens if `top_k` is given."""
        request = SampleRequest(prompt_ids=prompt_ids, sampling=sampling, seed=seed, top_k=top_k)
        sampled = await self._batcher.submit(request)
        completion = Completion(
            token_ids=sampled.token_ids,
            logprobs=sampled.logprobs,
            text=decode_text(self._tokenizer, sampled.token_ids),
            stop_reason=sampled.stop_reason,
            policy_version_min=self.policy_version,
            policy_version_max=self.policy_version,
        )
        return TeacherCompletion(completion=completion, targets=sampled.targets)

    async def score(self, context_ids: IntArray, token_ids: IntArray, *, top_k: int) -> TopKTargets:
        """Targets of `token_ids` [T] after `context_ids` [P]. Raises `ValueError` if either is empty."""
        request = TopKRequest(context_ids=context_ids, token_ids=token_ids, top_k=top_k)
        return (await self._scores.submit(request)).targets

    async def verify(
        self, context_ids: IntArray, draft_ids: IntArray, *, top_k: int, temperature: float, seed: int
    ) -> DraftVerdict:
        """As the engine's `verify`: see `actors/engine_scoring.py`."""
        request = TopKRequest(
            context_ids=context_ids, token_ids=draft_ids, top_k=top_k, draw=(temperature, seed)
        )
        score = await self._scores.submit(request)
        return DraftVerdict(
            num_accepted=first_outside(score.targets, draft_ids),
            replacement=score.drawn,
            replacement_ends=score.drawn in self._end_ids,
        )


class LocalGenerator:
    """Implements `Generator` on the learner's own module: its weights are always the newest."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    async def generate(self, prompt: Prompt, sampling: SamplingConfig) -> Completion:
        return (await self._engine.generate(prompt.token_ids, sampling, seed=prompt.seed)).completion

    async def token_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        return (await self._engine.score(prompt_ids, token_ids, top_k=0)).token_logprobs


class LocalTeacher:
    """Implements `Teacher`. A moving teacher's model is moved in place by the learner."""

    def __init__(self, engine: LocalEngine | None, scorer: AsyncScorer | None, *, top_k: int = 0) -> None:
        """
        Args:
            engine: None for a method that asks no teacher anything.
            scorer: None if hidden states are not asked for: then `score` gives log-probabilities.
            top_k: of `score` without a scorer; 0 for the tokens' own alone.
        """
        self._engine = engine
        self._scorer = scorer
        self._top_k = top_k

    async def generate(
        self, prompt_ids: IntArray, sampling: SamplingConfig, seed: int, *, top_k: int | None = None
    ) -> TeacherCompletion:
        return await self._served.generate(prompt_ids, sampling, seed=seed, top_k=top_k)

    @property
    def _served(self) -> LocalEngine:
        if self._engine is None:
            raise RuntimeError("LocalTeacher: there is no teacher; the method asks it nothing")
        return self._engine

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden | TopKTargets:
        if self._scorer is not None:
            return await self._scorer.score(context_ids, token_ids)
        return await self._served.score(context_ids, token_ids, top_k=self._top_k)

    async def token_logprobs(self, context_ids: IntArray, token_ids: IntArray) -> FloatArray:
        return (await self._served.score(context_ids, token_ids, top_k=0)).token_logprobs

    async def verify(
        self, context_ids: IntArray, draft_ids: IntArray, *, top_k: int, temperature: float, seed: int
    ) -> DraftVerdict:
        return await self._served.verify(
            context_ids, draft_ids, top_k=top_k, temperature=temperature, seed=seed
        )
