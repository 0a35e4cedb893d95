"""The Protocols of `trd_ray/interfaces.py` over Ray handles. No decision of the method is here."""

from __future__ import annotations

import itertools

from actors.engine import SamplingOptions
from actors.pool import EnginePool
from trd_ray.activity_records import VERIFY
from trd_ray.answers import completion_fault, logprobs_fault, target_fault
from trd_ray.config import SamplingConfig
from trd_ray.errors import describe
from trd_ray.stage_clock import Stage
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


class RayGenerators:
    """Implements `Generator` over a pool of generator actors."""

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool
        self._ids = itertools.count()

    async def generate(self, prompt: Prompt, sampling: SamplingConfig) -> Completion:
        options = sampling_options(sampling, seed=prompt.seed)
        answer: Completion = await self._pool.request(
            "generate",
            lambda actor: actor.generate.remote(prompt.token_ids, options, f"rollout-{next(self._ids)}"),
            stage=Stage.ROLLOUT,
            num_tokens=len(prompt.token_ids) + sampling.max_tokens,
            fault=lambda answer: completion_fault(answer, max_tokens=sampling.max_tokens),
        )
        return answer

    async def token_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        logprobs: FloatArray = await self._pool.request(
            "token_logprobs",
            lambda actor: actor.token_logprobs.remote(prompt_ids, token_ids),
            stage=Stage.SCORE,
            num_tokens=len(prompt_ids) + len(token_ids),
            fault=lambda answer: logprobs_fault(answer, num_tokens=len(token_ids)),
        )
        return logprobs


class RayTeachers:
    """Implements `Teacher` over a pool of teacher actors; there is none if nothing is asked of it."""

    def __init__(self, pool: EnginePool | None) -> None:
        self._pool = pool
        self._ids = itertools.count()

    async def generate(
        self, prompt_ids: IntArray, sampling: SamplingConfig, seed: int, *, top_k: int | None = None
    ) -> TeacherCompletion:
        options = sampling_options(sampling, seed=seed)
        answer: TeacherCompletion = await self._teachers("generate").request(
            "generate",
            lambda actor: actor.generate.remote(prompt_ids, options, f"teacher-{next(self._ids)}", top_k),
            stage=Stage.REFINE,
            num_tokens=len(prompt_ids) + sampling.max_tokens,
            fault=lambda answer: completion_fault(answer.completion, max_tokens=sampling.max_tokens),
        )
        return answer

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden | TopKTargets:
        target: TeacherHidden | TopKTargets = await self._teachers("score").request(
            "score",
            lambda actor: actor.score.remote(context_ids, token_ids),
            stage=Stage.SCORE,
            num_tokens=len(context_ids) + len(token_ids),
            fault=lambda answer: target_fault(answer, num_tokens=len(token_ids)),
        )
        return target

    async def token_logprobs(self, context_ids: IntArray, token_ids: IntArray) -> FloatArray:
        logprobs: FloatArray = await self._teachers("token_logprobs").request(
            "token_logprobs",
            lambda actor: actor.token_logprobs.remote(context_ids, token_ids),
            stage=Stage.SCORE,
            num_tokens=len(context_ids) + len(token_ids),
            fault=lambda answer: logprobs_fault(answer, num_tokens=len(token_ids)),
        )
        return logprobs

    async def verify(
        self, context_ids: IntArray, draft_ids: IntArray, *, top_k: int, temperature: float, seed: int
    ) -> DraftVerdict:
        verdict: DraftVerdict = await self._teachers("verify").request(
            "verify",
            lambda actor: actor.verify.remote(context_ids, draft_ids, top_k, temperature, seed),
            stage=VERIFY,
            num_tokens=len(context_ids) + len(draft_ids),
        )
        return verdict

    def _teachers(self, method: str) -> EnginePool:
        if self._pool is None:
            raise RuntimeError(
                describe(
                    "There is no teacher to ask",
                    where=f"teacher.{method}",
                    got="no teacher actors",
                    expected="one or more, as for any method in which a teacher generates or scores",
                    remedy="see TrdConfig.teacher_group, which says whether a configuration has teachers",
                )
            )
        return self._pool


def sampling_options(sampling: SamplingConfig, *, seed: int) -> SamplingOptions:
    """A role's sampling block and a request's seed, as the engine takes them."""
    return SamplingOptions(
        max_tokens=sampling.max_tokens,
        seed=seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )
