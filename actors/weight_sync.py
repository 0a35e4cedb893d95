"""The push of weights: learner ranks and engines meet in the same broadcasts."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from actors.calls import call, call_all
from actors.handles import NamedActor
from actors.learner_senders import Which
from actors.weight_transfer import Receiver
from trd_ray.config import WeightSyncConfig
from trd_ray.errors import WeightSyncError, describe
from trd_ray.types import SyncReport
from trd_ray.weights import WeightManifest

_MIB = 2**20
# The ends limit each of their waits themselves, and name the culprit. A push has several of them in a
# row (begin, broadcast, load, resume); the driver's limit is only a last resort.
_WAITS_PER_PUSH = 4


@dataclass(frozen=True, kw_only=True)
class ReceiverGroup:
    """Engines that get the same weights."""

    actors: tuple[NamedActor, ...]
    """Each offers init_weight_transfer, update_weights and weight_checksum."""
    dtype: str
    """Format of their weights, which is that on the wire."""
    workers: int
    """Workers of each: the tensor-parallel size of its engine."""


class RayWeightSync:
    """Implements `WeightSync` between a group of learner ranks and the engines that follow them.

    The student's weights go to the generators at every push. A teacher's go to the teachers, if there
    are any that follow, and only if they are others than those that the teachers have: they began with
    the first ones, from the model folder.
    """

    def __init__(
        self,
        config: WeightSyncConfig,
        *,
        learners: Sequence[NamedActor],
        generators: Sequence[NamedActor],
        dtype: str,
        workers_per_generator: int,
        timeout_s: float,
        teachers: ReceiverGroup | None = None,
    ) -> None:
        """
        Args:
            dtype: format of the generators' weights, which is that on the wire.
            workers_per_generator: tensor-parallel size of their engines.
            timeout_s: limit of each wait of one push.
            teachers: teachers with an engine whose weights move; None if there are none.
        """
        self._config = config
        self._learners = tuple(learners)
        student = ReceiverGroup(actors=tuple(generators), dtype=dtype, workers=workers_per_generator)
        self._groups = {Which.STUDENT: student}
        if teachers is not None:
            self._groups[Which.TEACHER] = teachers
        self._timeout_s = timeout_s
        self._manifests: dict[Which, WeightManifest] = {}
        self._teacher_version = 0

    @property
    def _limit_s(self) -> float:
        return _WAITS_PER_PUSH * self._timeout_s

    async def connect(self) -> None:
        """Bring rank 0 and each group of engines into a transfer group; once, before the first push."""
        for which, group in self._groups.items():
            await self._connect(which, group)

    async def _connect(self, which: Which, group: ReceiverGroup) -> None:
        receivers = [Receiver(name=actor.name, num_workers=group.workers) for actor in group.actors]
        first = self._learners[0].handle
        listening = first.listen_for_receivers.remote(
            which.value,
            receivers,
            backend=self._config.backend.value,
            address=self._config.host,
            bucket_bytes=self._config.bucket_mib * _MIB,
            timeout_s=self._timeout_s,
        )
        endpoints = await self._first(listening, "listen_for_receivers")
        joining = [
            actor.handle.init_weight_transfer.remote(endpoint)
            for actor, endpoint in zip(group.actors, endpoints, strict=True)
        ]
        await asyncio.gather(
            self._first(first.connect_receivers.remote(which.value), "connect_receivers"),
            self._all(group.actors, joining, "init_weight_transfer"),
        )
        self._manifests[which] = await self._first(first.manifest.remote(group.dtype), "manifest")

    async def push(self, policy_version: int) -> SyncReport:
        """Send the learner's weights to every generator, and a teacher's that moved to every teacher;
        compare what they loaded. The report is the student's, `sync_s` of both.

        Raises `WeightSyncError` if an engine holds other weights than were sent, or the learner
        is at another version; `ActorTimeoutError` names who did not come.
        """
        if not self._manifests:
            raise RuntimeError("RayWeightSync.push: connect() was not called")
        start = time.perf_counter()
        report = await self._push(Which.STUDENT, policy_version, self._learners)
        if Which.TEACHER in self._groups:
            await self._push_teacher()
        return dataclasses.replace(report, sync_s=time.perf_counter() - start)

    async def _push_teacher(self) -> None:
        asking = self._learners[0].handle.teacher_version.remote()
        version = await self._first(asking, "teacher_version")
        if version != self._teacher_version:
            # Rank 0 holds the whole teacher, so that the others have no part in it.
            await self._push(Which.TEACHER, version, self._learners[:1])
            self._teacher_version = version

    async def _push(self, which: Which, version: int, senders: Sequence[NamedActor]) -> SyncReport:
        group = self._groups[which]
        loading = [
            actor.handle.update_weights.remote(self._manifests[which], version, self._timeout_s)
            for actor in group.actors
        ]
        sending = [learner.handle.push_weights.remote(which.value, group.dtype) for learner in senders]
        reports, _ = await asyncio.gather(
            self._all(senders, sending, "push_weights"),
            self._all(group.actors, loading, "update_weights"),
        )
        report: SyncReport | None = reports[0]
        assert report is not None  # rank 0 always reports
        self._check_version(report, version)
        if self._config.verify:
            await self._verify(which, report)
        return report

    async def _verify(self, which: Which, report: SyncReport) -> None:
        actors = self._groups[which].actors
        reading = [actor.handle.weight_checksum.remote(self._timeout_s) for actor in actors]
        checksums = await self._all(actors, reading, "weight_checksum")
        wrong = {
            actor.name: checksum
            for actor, checksum in zip(actors, checksums, strict=True)
            if checksum != report.checksum
        }
        if wrong:
            raise WeightSyncError(
                describe(
                    "engines hold other weights than the learner sent",
                    where=f"push of the {which.value}'s weights, version {report.policy_version}",
                    got=wrong,
                    expected=report.checksum,
                    remedy="continue with --resume; if it comes again, the engine loads this architecture "
                    "otherwise than it stores it: run trd-ray doctor",
                )
            )

    def _check_version(self, report: SyncReport, policy_version: int) -> None:
        if report.policy_version != policy_version:
            raise WeightSyncError(
                describe(
                    "the learner pushed another version than was asked for",
                    where="learner-0.push_weights",
                    got=report.policy_version,
                    expected=str(policy_version),
                    remedy="continue with --resume",
                )
            )

    async def _first(self, ref, method: str):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        """The result of a call of learner rank 0."""
        return await call(ref, actor=self._learners[0].name, method=method, timeout_s=self._limit_s)

    async def _all(self, actors: Sequence[NamedActor], refs: list, method: str) -> list:  # type: ignore[type-arg]
        return await call_all(refs, actors=[a.name for a in actors], method=method, timeout_s=self._limit_s)
