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
class PushGroup:
    """Engines that receive the same weights."""

    which: Which
    actors: tuple[NamedActor, ...]
    dtype: str
    """Format of the engines' weights, which is that on the wire."""
    workers_per_actor: int
    """Tensor-parallel size of the engines."""


class RayWeightSync:
    """Implements `WeightSync` between a group of learner ranks and the groups of engines that follow it.

    The generators get the student's weights at every push. Teachers whose weights move get them when they
    have moved; rank 0 alone holds and sends those.
    """

    def __init__(
        self,
        config: WeightSyncConfig,
        *,
        learners: Sequence[NamedActor],
        generators: PushGroup,
        teachers: PushGroup | None = None,
        timeout_s: float,
    ) -> None:
        """
        Args:
            teachers: None if the teacher's weights do not move, or no engine has them.
            timeout_s: limit of each wait of one push.
        """
        self._config = config
        self._learners = tuple(learners)
        self._generators = generators
        self._teachers = teachers
        self._timeout_s = timeout_s
        self._manifests: dict[Which, WeightManifest] = {}
        # An engine starts from the folder that holds the teacher of step 0.
        self._teacher_version = 0

    @property
    def _limit_s(self) -> float:
        return _WAITS_PER_PUSH * self._timeout_s

    async def connect(self) -> None:
        """Bring rank 0 and each group into a transfer group; once, before the first push."""
        await self._connect(self._generators)
        if self._teachers is not None:
            await self._connect(self._teachers)

    async def _connect(self, group: PushGroup) -> None:
        first, which = self._learners[0], group.which.value
        endpoints = await call(
            first.handle.listen_for_receivers.remote(
                which,
                [Receiver(name=actor.name, num_workers=group.workers_per_actor) for actor in group.actors],
                backend=self._config.backend.value,
                address=self._config.host,
                bucket_bytes=self._config.bucket_mib * _MIB,
                timeout_s=self._timeout_s,
            ),
            actor=first.name,
            method="listen_for_receivers",
            timeout_s=self._limit_s,
        )
        joining = [
            actor.handle.init_weight_transfer.remote(endpoint)
            for actor, endpoint in zip(group.actors, endpoints, strict=True)
        ]
        connecting = first.handle.connect_receivers.remote(which)
        await asyncio.gather(
            call(connecting, actor=first.name, method="connect_receivers", timeout_s=self._limit_s),
            self._all(group.actors, joining, "init_weight_transfer"),
        )
        self._manifests[group.which] = await call(
            first.handle.manifest.remote(group.dtype),
            actor=first.name,
            method="manifest",
            timeout_s=self._limit_s,
        )

    async def push(self, policy_version: int) -> SyncReport:
        """Send the learner's weights to every generator, and compare what they loaded; likewise the
        teacher's to every teacher, if they have moved since the last time.

        Returns:
            What the student's push did; the time is that of both.

        Raises `WeightSyncError` if an engine holds other weights than were sent, or the learner is at
        another version; `ActorTimeoutError` names who did not come.
        """
        start = time.perf_counter()
        report = await self._push(self._generators, self._learners, policy_version)
        if self._teachers is not None:
            await self._push_teacher(self._teachers)
        return dataclasses.replace(report, sync_s=time.perf_counter() - start)

    async def _push_teacher(self, teachers: PushGroup) -> None:
        first = self._learners[0]
        version = await call(
            first.handle.teacher_version.remote(),
            actor=first.name,
            method="teacher_version",
            timeout_s=self._limit_s,
        )
        if version != self._teacher_version:
            await self._push(teachers, (first,), version)
            self._teacher_version = version

    async def _push(self, group: PushGroup, senders: Sequence[NamedActor], version: int) -> SyncReport:
        if group.which not in self._manifests:
            raise RuntimeError("RayWeightSync.push: connect() was not called")
        manifest = self._manifests[group.which]
        loading = [
            actor.handle.update_weights.remote(manifest, version, self._timeout_s) for actor in group.actors
        ]
        sending = [sender.handle.push_weights.remote(group.which.value, group.dtype) for sender in senders]
        reports, _ = await asyncio.gather(
            self._all(senders, sending, "push_weights"),
            self._all(group.actors, loading, "update_weights"),
        )
        report: SyncReport | None = reports[0]
        assert report is not None  # rank 0 always reports
        self._check_version(report, version)
        if self._config.verify:
            await self._verify(group, report)
        return report

    async def _verify(self, group: PushGroup, report: SyncReport) -> None:
        reading = [actor.handle.weight_checksum.remote(self._timeout_s) for actor in group.actors]
        checksums = await self._all(group.actors, reading, "weight_checksum")
        wrong = {
            actor.name: checksum
            for actor, checksum in zip(group.actors, checksums, strict=True)
            if checksum != report.checksum
        }
        if wrong:
            raise WeightSyncError(
                describe(
                    "engines hold other weights than the learner sent",
                    where=f"push of the {group.which.value}'s weights, version {report.policy_version}",
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

    async def _all(self, actors: Sequence[NamedActor], refs: list, method: str) -> list:  # type: ignore[type-arg]
        return await call_all(refs, actors=[a.name for a in actors], method=method, timeout_s=self._limit_s)
