"""Generation in this process with transformers: the generator and the refining teacher of `--no-ray`."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trd_ray.config import SamplingConfig
from trd_ray.local.sampling import Sampled, SampleRequest, sample
from trd_ray.micro_batcher import MicroBatcher
from trd_ray.scoring import AsyncScorer
from trd_ray.types import Completion, IntArray, Prompt, TeacherCompletion, TeacherHidden


class LocalEngine:
    """A transformers model behind the same calls as a vLLM engine."""

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

    def _compute(self, requests: Sequence[SampleRequest]) -> Sequence[Sampled]:
        return sample(self._model, requests, end_ids=self._end_ids)

    async def generate(self, prompt_ids: IntArray, sampling: SamplingConfig, *, seed: int) -> Completion:
        """One completion of `prompt_ids` [P]."""
        request = SampleRequest(prompt_ids=prompt_ids, sampling=sampling, seed=seed)
        sampled = await self._batcher.submit(request)
        return Completion(
            token_ids=sampled.token_ids,
            logprobs=sampled.logprobs,
            text=str(self._tokenizer.decode(sampled.token_ids.tolist(), skip_special_tokens=True)),
            stop_reason=sampled.stop_reason,
            policy_version_min=self.policy_version,
            policy_version_max=self.policy_version,
        )


class LocalGenerator:
    """Implements `Generator` on the learner's own module: its weights are always the newest."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    async def generate(self, prompt: Prompt, sampling: SamplingConfig) -> Completion:
        return await self._engine.generate(prompt.token_ids, sampling, seed=prompt.seed)


class LocalTeacher:
    """Implements `Teacher`."""

    def __init__(self, engine: LocalEngine, scorer: AsyncScorer) -> None:
        self._engine = engine
        self._scorer = scorer

    async def generate(
        self, prompt_ids: IntArray, sampling: SamplingConfig, seed: int, *, top_k: int | None = None
    ) -> TeacherCompletion:
        return TeacherCompletion(completion=await self._engine.generate(prompt_ids, sampling, seed=seed))

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden:
        return await self._scorer.score(context_ids, token_ids)
