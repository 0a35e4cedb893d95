"""Implements `Learner` over the learner ranks: every call goes to all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actors.calls import call, call_all
from actors.handles import NamedActor
from trd_ray.batching import part_for_rank
from trd_ray.types import FloatArray, IntArray, LearnerStep, TrainingBatch


class RayLearner:
    """The group of ranks as one learner."""

    def __init__(self, ranks: Sequence[NamedActor], *, timeout_s: float) -> None:
        self._ranks = tuple(ranks)
        self._names = tuple(rank.name for rank in ranks)
        self._timeout_s = timeout_s

    async def setup(self, *, host: str, timeout_s: float) -> None:
        """Load models and form the group; once, before anything else."""
        first = self._ranks[0]
        address, port = await call(
            first.handle.find_master.remote(host), actor=first.name, method="find_master", timeout_s=timeout_s
        )
        refs = [rank.handle.setup.remote(address, port) for rank in self._ranks]
        await call_all(refs, actors=self._names, method="setup", timeout_s=timeout_s)

    async def learn(self, batch: TrainingBatch) -> LearnerStep:
        refs = [rank.handle.learn.remote(part_for_rank(batch, rank=i)) for i, rank in enumerate(self._ranks)]
        steps = await call_all(refs, actors=self._names, method="learn", timeout_s=self._timeout_s)
        return steps[0]

    async def save(self, folder: Path) -> None:
        refs = [rank.handle.save.remote(folder.resolve()) for rank in self._ranks]
        await call_all(refs, actors=self._names, method="save", timeout_s=self._timeout_s)

    async def load(self, folder: Path) -> int:
        refs = [rank.handle.load.remote(folder.resolve()) for rank in self._ranks]
        versions = await call_all(refs, actors=self._names, method="load", timeout_s=self._timeout_s)
        return versions[0]

    async def probe_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        """[T] student_logprobs of `token_ids` [T] after `prompt_ids` [P], for a comparison."""
        refs = [rank.handle.probe_logprobs.remote(prompt_ids, token_ids) for rank in self._ranks]
        probes = await call_all(refs, actors=self._names, method="probe_logprobs", timeout_s=self._timeout_s)
        return probes[0]
