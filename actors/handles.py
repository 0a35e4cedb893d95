"""The Protocols of `trd_ray/interfaces.py` over Ray handles. No decision of the method is here."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from actors.calls import call
from actors.engine import SamplingOptions
from trd_ray.config import SamplingConfig
from trd_ray.errors import describe
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


@dataclass(frozen=True, kw_only=True)
class NamedActor:
    """An actor handle and the name that people know it by."""

    name: str
    handle: Any  # Ray generates the type of a handle at run time


class LeastLoaded:
    """Chooses the member of a group with the fewest outstanding tokens, and waits for a slot there.

    Slots bound what an actor holds, so that the time limit of a call, which begins when the slot is
    taken, does not count the time that a long evaluation spends in the queue.
    """

    def __init__(self, actors: tuple[NamedActor, ...], *, num_slots: int) -> None:
        """
        Args:
            num_slots: requests that one actor holds at once.
        """
        if not actors:
            raise ValueError("LeastLoaded: got no actors; expected one or more")
        self._actors = actors
        self._outstanding = [0] * len(actors)
        self._slots = [asyncio.Semaphore(num_slots) for _ in actors]

    @asynccontextmanager
    async def choose(self, num_tokens: int) -> AsyncIterator[NamedActor]:
        """The actor for a request of about `num_tokens`, which count as outstanding meanwhile."""
        index = self._outstanding.index(min(self._outstanding))
        self._outstanding[index] += num_tokens
        try:
            async with self._slots[index]:
                yield self._actors[index]
        finally:
            self._outstanding[index] -= num_tokens


class RayGenerators:
    """Implements `Generator` over a group of generator actors."""

    def __init__(self, actors: tuple[NamedActor, ...], *, num_slots: int, timeout_s: float) -> None:
        self._group = LeastLoaded(actors, num_slots=num_slots)
        self._timeout_s = timeout_s
        self._ids = itertools.count()

    async def generate(self, prompt: Prompt, sampling: SamplingConfig) -> Completion:
        async with self._group.choose(len(prompt.token_ids) + sampling.max_tokens) as actor:
            ref = actor.handle.generate.remote(
                prompt.token_ids, sampling_options(sampling, seed=prompt.seed), f"rollout-{next(self._ids)}"
            )
            return await call(ref, actor=actor.name, method="generate", timeout_s=self._timeout_s)

    async def token_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        async with self._group.choose(len(prompt_ids) + len(token_ids)) as actor:
            ref = actor.handle.token_logprobs.remote(prompt_ids, token_ids)
            return await call(ref, actor=actor.name, method="token_logprobs", timeout_s=self._timeout_s)


class RayTeachers:
    """Implements `Teacher` over a group of teacher actors, which may be empty if nothing is asked."""

    def __init__(self, actors: tuple[NamedActor, ...], *, num_slots: int, timeout_s: float) -> None:
        self._group = LeastLoaded(actors, num_slots=num_slots) if actors else None
        self._timeout_s = timeout_s
        self._ids = itertools.count()

    async def generate(
        self, prompt_ids: IntArray, sampling: SamplingConfig, seed: int, *, top_k: int | None = None
    ) -> TeacherCompletion:
        async with self._teachers("generate").choose(len(prompt_ids) + sampling.max_tokens) as actor:
            ref = actor.handle.generate.remote(
                prompt_ids, sampling_options(sampling, seed=seed), f"teacher-{next(self._ids)}", top_k
            )
            return await call(ref, actor=actor.name, method="generate", timeout_s=self._timeout_s)

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden | TopKTargets:
        async with self._teachers("score").choose(len(context_ids) + len(token_ids)) as actor:
            ref = actor.handle.score.remote(context_ids, token_ids)
            return await call(ref, actor=actor.name, method="score", timeout_s=self._timeout_s)

    async def token_logprobs(self, context_ids: IntArray, token_ids: IntArray) -> FloatArray:
        async with self._teachers("token_logprobs").choose(len(context_ids) + len(token_ids)) as actor:
            ref = actor.handle.token_logprobs.remote(context_ids, token_ids)
            return await call(ref, actor=actor.name, method="token_logprobs", timeout_s=self._timeout_s)

    async def verify(
        self, context_ids: IntArray, draft_ids: IntArray, *, top_k: int, temperature: float, seed: int
    ) -> DraftVerdict:
        async with self._teachers("verify").choose(len(context_ids) + len(draft_ids)) as actor:
            ref = actor.handle.verify.remote(context_ids, draft_ids, top_k, temperature, seed)
            return await call(ref, actor=actor.name, method="verify", timeout_s=self._timeout_s)

    def _teachers(self, method: str) -> LeastLoaded:
        if self._group is None:
            raise RuntimeError(
                describe(
                    "There is no teacher to ask",
                    where=f"teacher.{method}",
                    got="no teacher actors",
                    expected="one or more, as for any method in which a teacher generates or scores",
                    remedy="see TrdConfig.teacher_group, which says whether a configuration has teachers",
                )
            )
        return self._group


def sampling_options(sampling: SamplingConfig, *, seed: int) -> SamplingOptions:
    """A role's sampling block and a request's seed, as the engine takes them."""
    return SamplingOptions(
        max_tokens=sampling.max_tokens,
        seed=seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )
