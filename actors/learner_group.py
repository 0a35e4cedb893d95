"""Implements `Learner` over the learner ranks: every call goes to all of them at once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.calls import call
from actors.members import NamedActor, kill, locate
from trd_ray.batching import part_for_rank
from trd_ray.disk import disk_error, is_refusal, writing
from trd_ray.errors import (
    ActorLostError,
    ActorTimeoutError,
    LearnerLostError,
    PlacementError,
    TrdRayError,
    brief,
    describe,
    unwrapped,
)
from trd_ray.token_values import join_ranks
from trd_ray.types import FloatArray, IntArray, LearnerStep, TrainingBatch

# The rank that died is known at once; the others only notice that it does not answer.
_GRACE_S = 3.0


class RayLearner:
    """The group of ranks as one learner."""

    def __init__(
        self,
        ranks: Sequence[NamedActor],
        *,
        create: Callable[[int], NamedActor],
        host: Callable[[], str],
        run_dir: Path,
        start_s: float,
        timeout_s: float,
    ) -> None:
        """
        Args:
            create: makes the actor of a rank anew, after the old one is killed.
            host: where the ranks meet, of `meeting_host`; asked for each set of actors.
            run_dir: of the run, where the ranks write their parts of its checkpoints.
            start_s: limit of loading the model, in seconds; `timeout_s` that of every other call.
        """
        self._ranks = tuple(ranks)
        self._create = create
        self._host = host
        self._run_dir = run_dir
        self._address: str | None = None
        self._start_s = start_s
        self._timeout_s = timeout_s

    @property
    def ranks(self) -> tuple[NamedActor, ...]:
        """The present ones; other actors after `restart`."""
        return self._ranks

    @property
    def address(self) -> str:
        """Of the first rank's node, where the ranks met. Raises `RuntimeError` before `setup`."""
        if self._address is None:
            raise RuntimeError("RayLearner.address: the ranks have not met; call setup first")
        return self._address

    async def setup(self) -> None:
        """Load models and form the group; once for each set of actors, before anything else.

        Raises as `all_ranks`: a rank that dies here is a rank that is lost. Raises `PlacementError` if a rank
        does not see the run folder, or the first cannot be met at the configured address.
        """
        names = [rank.name for rank in self._ranks]
        locating = [asyncio.ensure_future(locate(rank, timeout_s=self._start_s)) for rank in self._ranks]
        await all_ranks(locating, names=names, method="whereabouts")
        await self._require_run_dir()
        first = self._ranks[0]
        finding = call(
            first.handle.find_master.remote(self._host()),
            actor=first.name,
            method="find_master",
            timeout_s=self._start_s,
        )
        found = await all_ranks([asyncio.ensure_future(finding)], names=names[:1], method="find_master")
        self._address, port = found[0]
        refs = [rank.handle.setup.remote(self._address, port) for rank in self._ranks]
        await self._all(refs, "setup", timeout_s=self._start_s)

    async def _require_run_dir(self) -> None:
        """Raise `PlacementError` naming ranks for which the run folder is not the driver's: what they would
        save there, no checkpoint would hold. Raises `DiskError` if the driver cannot write there."""
        path = self._run_dir.resolve() / f".seen-by-all-{uuid.uuid4().hex}"
        with writing(path):
            path.write_text("of the driver, while learner ranks look for it\n", encoding="utf-8")
        try:
            seen = await self._all(
                [rank.handle.sees.remote(path) for rank in self._ranks], "sees", timeout_s=self._start_s
            )
        finally:
            path.unlink(missing_ok=True)
        blind = [rank.name for rank, sees in zip(self._ranks, seen, strict=True) if not sees]
        if blind:
            raise PlacementError(
                describe(
                    "the run folder is not the same for driver and learner",
                    where="run.dir",
                    got=f"{path.parent}, where {', '.join(blind)} does not see the driver's files",
                    expected="one folder, under the same path on the nodes of driver and learner",
                    remedy="put run.dir on a disk that all nodes mount",
                )
            )

    async def restart(self) -> None:
        """Kill every rank and begin anew with the weights of step 0."""
        await asyncio.gather(*(kill(rank) for rank in self._ranks))
        self._ranks = tuple(self._create(index) for index in range(len(self._ranks)))
        await self.setup()

    async def learn(self, batch: TrainingBatch) -> LearnerStep:
        refs = [rank.handle.learn.remote(part_for_rank(batch, rank=i)) for i, rank in enumerate(self._ranks)]
        steps: list[LearnerStep] = await self._all(refs, "learn")
        return replace(steps[0], token_values=join_ranks([step.token_values for step in steps]))

    async def save(self, folder: Path) -> None:
        await self._all([rank.handle.save.remote(folder.resolve()) for rank in self._ranks], "save")

    async def load(self, folder: Path) -> int:
        versions: list[int] = await self._all(
            [rank.handle.load.remote(folder.resolve()) for rank in self._ranks], "load"
        )
        return versions[0]

    async def probe_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        """[T] student_logprobs of `token_ids` [T] after `prompt_ids` [P], for a comparison."""
        refs = [rank.handle.probe_logprobs.remote(prompt_ids, token_ids) for rank in self._ranks]
        probes: list[FloatArray] = await self._all(refs, "probe_logprobs")
        return probes[0]

    async def _all(self, refs: Sequence[Any], method: str, *, timeout_s: float | None = None) -> list[Any]:
        calls = [
            asyncio.ensure_future(
                call(ref, actor=rank.name, method=method, timeout_s=timeout_s or self._timeout_s)
            )
            for ref, rank in zip(refs, self._ranks, strict=True)
        ]
        return await all_ranks(calls, names=[rank.name for rank in self._ranks], method=method)


async def all_ranks(calls: Sequence[asyncio.Future[Any]], *, names: Sequence[str], method: str) -> list[Any]:
    """The results of a collective call, in the order of the ranks.

    Raises:
        LearnerLostError: a rank died, hangs, or raised what a rank must not raise; names the rank whose
            error says most. The others may be in the middle of a collective: the group is of no use.
        DiskRefusedError: the disk of a rank is full, or may not be written to.
        TrdRayError, ValueError: what every rank raises that is asked for the impossible.
    """
    try:
        _, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
        if waiting:
            await asyncio.wait(waiting, timeout=_GRACE_S)
    finally:
        for calling in calls:
            calling.cancel()
    errors = {
        name: error
        for name, calling in zip(names, calls, strict=True)
        if calling.done() and not calling.cancelled() and (error := calling.exception())
    }
    if not errors:
        return [calling.result() for calling in calls]
    name = min(errors, key=lambda name: _rank_of_error(errors[name]))
    error = errors[name]
    inner = unwrapped(error)
    if _rank_of_error(error) == _EXPECTED:
        raise inner from None if inner is error else error  # the rank's own traceback
    if isinstance(inner, OSError) and is_refusal(inner):
        raise disk_error(inner, f"{name}.{method}") from error
    raise LearnerLostError(
        describe(
            "a learner rank is lost",
            where=f"{name}.{method}",
            got=brief(error),
            expected="an answer of every rank",
            remedy=f"see the log of {name} (out of memory is the usual reason)",
        )
    ) from error


_EXPECTED = 0


def _rank_of_error(error: BaseException) -> int:
    """Which of several errors is the news: what a rank says of the request, then who died, who hangs, and
    last what the others noticed of it."""
    if isinstance(error, ActorLostError):
        return 1
    if isinstance(error, ActorTimeoutError):
        return 3
    if isinstance(error, TrdRayError | ValueError):
        return _EXPECTED
    if isinstance(error, OSError):
        return 2
    return 4
