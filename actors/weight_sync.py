"""The push of weights: learner ranks and engines meet in the same broadcasts.

An engine that dies or hangs in a push costs the push another try without it; one that was started meanwhile
takes part in the next.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.calls import call
from actors.joint_call import JointResult, joint_call
from actors.learner_group import all_ranks
from actors.learner_senders import SenderOptions, Which
from actors.members import Member, NamedActor
from actors.pool import EnginePool
from actors.weight_transfer import Receiver
from trd_ray.config import WeightSyncConfig
from trd_ray.errors import WeightSyncError, describe
from trd_ray.types import SyncReport
from trd_ray.weights import WeightManifest

_MIB = 2**20
# The ends limit each of their waits themselves, and name the culprit. A push has several of them in a
# row (begin, broadcast, load, resume); the driver's limit is only a last resort.
WAITS_PER_PUSH = 4


@dataclass(frozen=True, kw_only=True)
class PushGroup:
    """Engines that receive the same weights."""

    which: Which
    pool: EnginePool
    dtype: str
    """Format of the engines' weights, which is that on the wire."""
    workers_per_actor: int
    """Tensor-parallel size of the engines."""


@dataclass(kw_only=True)
class _Group:
    """A push group and how it stands."""

    options: PushGroup
    connected: tuple[NamedActor, ...] = ()
    """Who is in the transfer group: rank 0, then the engines. Empty if there is none."""
    manifest: WeightManifest | None = None
    was_pushed: bool = False
    """Its engines no longer hold what they started with."""
    report: SyncReport | None = None
    """Of the last push that succeeded."""
    num_pushed: int = 0
    """Pushes since its members met."""


class RayWeightSync:
    """Implements `WeightSync` between a group of learner ranks and the pools of engines that follow it.

    The generators get the student's weights at every push. Teachers whose weights move get them when they
    have moved; rank 0 alone holds and sends those.
    """

    def __init__(
        self,
        config: WeightSyncConfig,
        *,
        learners: Callable[[], Sequence[NamedActor]],
        address: Callable[[], str],
        generators: PushGroup,
        teachers: PushGroup | None = None,
        timeout_s: float,
        max_tries: int,
        replace_s: float,
    ) -> None:
        """
        Args:
            learners: the present ranks.
            address: of the node of the first, at which engines meet it.
            teachers: None if the teacher's weights do not move, or no engine has them.
            timeout_s: limit of each wait of one push.
            max_tries: times that one push is tried, each time without the engines that were lost.
            replace_s: limit of the wait for a replacement where no engine is left.
        """
        self._config = config
        self._learners = learners
        self._address = address
        self._generators = _Group(options=generators)
        self._teachers = None if teachers is None else _Group(options=teachers)
        self._timeout_s = timeout_s
        self._max_tries = max_tries
        self._replace_s = replace_s

    @property
    def _limit_s(self) -> float:
        return WAITS_PER_PUSH * self._timeout_s

    async def push(self, policy_version: int) -> SyncReport:
        """Send the learner's weights to every generator, and compare what they loaded where that is due;
        likewise the teacher's to every teacher, if they have moved since the last time.

        Returns:
            What the student's push did; the time is that of both.

        Raises:
            WeightSyncError: every engine holds other weights than were sent, or the learner is at another
                version.
            LearnerLostError: a rank died or hangs.
            RunFailedError: no engine is left.
            ActorTimeoutError, ActorLostError: tries are used up; names an engine.
        """
        start = time.perf_counter()
        report = await self._push_until_done(self._generators, self._learners, policy_version)
        if self._teachers is not None:
            version = await self._teacher_version()
            # An engine starts from the folder that holds the teacher of step 0.
            if version or self._teachers.was_pushed:
                await self._push_until_done(self._teachers, lambda: self._learners()[:1], version)
            else:
                pool = self._teachers.options.pool
                pool.has_weights({member: member.actor for member in pool.up})
        return dataclasses.replace(report, sync_s=time.perf_counter() - start)

    async def _teacher_version(self) -> int:
        first = self._learners()[0]
        calling = asyncio.ensure_future(
            call(
                first.handle.teacher_version.remote(),
                actor=first.name,
                method="teacher_version",
                timeout_s=self._limit_s,
            )
        )
        versions: list[int] = await all_ranks([calling], names=[first.name], method="teacher_version")
        return versions[0]

    async def _push_until_done(
        self, group: _Group, senders: Callable[[], Sequence[NamedActor]], version: int
    ) -> SyncReport:
        """Push to all engines of the group that are up, without those that are lost on the way."""
        pool = group.options.pool
        if group.report is not None and group.report.policy_version == version and pool.all_serve:
            # A replacement came up while the others were pushed to, and got its weights with them.
            return group.report
        # What the engines hold is not known before a try has succeeded.
        group.report, group.was_pushed = None, True
        async with pool.pushing():
            for is_last in [False] * (self._max_tries - 1) + [True]:
                await pool.some_member_up(timeout_s=self._replace_s)
                actors = {member: member.actor for member in pool.up}
                try:
                    group.report = await self._try_push(group, actors, senders(), version)
                except _BrokenPushError as broken:
                    for member, error in broken.lost.items():
                        pool.lose(member, error, actor=actors[member])
                    if is_last:
                        raise broken.error from None
                else:
                    return group.report
                finally:
                    if group.report is None:
                        group.connected = ()
        raise AssertionError("unreachable: the last try returns or raises")

    async def _try_push(
        self,
        group: _Group,
        actors: Mapping[Member, NamedActor],
        senders: Sequence[NamedActor],
        version: int,
    ) -> SyncReport:
        """One try, with the actors that are in the members' places as it begins. Raises `_BrokenPushError`,
        or what no other try would change."""
        await self._connect(group, actors)
        assert group.manifest is not None  # connected
        which, dtype = group.options.which.value, group.options.dtype
        every = self._config.verify_every
        read_back = every > 0 and group.num_pushed % every == 0
        result = await self._joint(
            "push_weights",
            "update_weights",
            [(sender, sender.handle.push_weights.remote(which, dtype, read_back)) for sender in senders],
            {
                member: actor.handle.update_weights.remote(group.manifest, version, self._timeout_s)
                for member, actor in actors.items()
            },
        )
        report: SyncReport = result.of_learners[0]
        self._check_version(report, version)
        if read_back:
            await self._verify(group, actors, report)
        group.num_pushed += 1
        group.options.pool.has_weights(actors)
        return report

    async def _connect(self, group: _Group, actors: Mapping[Member, NamedActor]) -> None:
        """Bring rank 0 and the engines into a transfer group, unless these very ones are in one."""
        first, which = self._learners()[0], group.options.which.value
        wanted = (first, *actors.values())
        if group.connected == wanted:
            return
        group.connected = ()
        receivers = [
            Receiver(name=actor.name, num_workers=group.options.workers_per_actor)
            for actor in actors.values()
        ]
        listening = first.handle.listen_for_receivers.remote(
            which,
            receivers,
            SenderOptions(
                backend=self._config.backend.value,
                address=self._address(),
                bucket_bytes=self._config.bucket_mib * _MIB,
                shared_memory=self._config.shared_memory,
                timeout_s=self._timeout_s,
            ),
        )
        endpoints = (await self._joint("listen_for_receivers", "", [(first, listening)], {})).of_learners[0]
        joining = {
            member: actor.handle.init_weight_transfer.remote(endpoint)
            for (member, actor), endpoint in zip(actors.items(), endpoints, strict=True)
        }
        connecting = first.handle.connect_receivers.remote(which)
        await self._joint("connect_receivers", "init_weight_transfer", [(first, connecting)], joining)
        manifest = first.handle.manifest.remote(group.options.dtype)
        group.manifest = (await self._joint("manifest", "", [(first, manifest)], {})).of_learners[0]
        group.connected, group.num_pushed = wanted, 0

    async def _joint(
        self,
        rank_method: str,
        member_method: str,
        learners: Sequence[tuple[NamedActor, Any]],
        members: Mapping[Member, Any],
    ) -> JointResult:
        result = await joint_call(
            rank_method,
            member_method,
            learners,
            members,
            timeout_s=self._timeout_s,
            limit_s=self._limit_s,
        )
        if result.error is not None:
            raise _BrokenPushError(result.error, result.lost)
        return result

    async def _verify(self, group: _Group, actors: Mapping[Member, NamedActor], report: SyncReport) -> None:
        """Raises `WeightSyncError` if every engine holds other weights: then it is no engine's fault."""
        result = await self._joint(
            "",
            "weight_checksum",
            [],
            {
                member: actor.handle.weight_checksum.remote(self._timeout_s)
                for member, actor in actors.items()
            },
        )
        wrong = {m: checksum for m, checksum in result.of_members.items() if checksum != report.checksum}
        if not wrong:
            return
        error = WeightSyncError(
            describe(
                "engines hold other weights than the learner sent",
                where=f"push of the {group.options.which.value}'s weights, version {report.policy_version}",
                got={member.actor.name: checksum for member, checksum in wrong.items()},
                expected=report.checksum,
                remedy="continue with --resume; if it comes again, the engine loads this architecture "
                "otherwise than it stores it: run trd-ray doctor",
            )
        )
        if len(wrong) == len(actors):
            raise error
        raise _BrokenPushError(error, dict.fromkeys(wrong, error))

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


class _BrokenPushError(Exception):
    """A push broke off; another try may do. Never leaves this file."""

    def __init__(self, error: Exception, lost: Mapping[Member, Exception]) -> None:
        super().__init__(str(error))
        self.error = error
        self.lost = lost
