"""Roles that share devices take turns by stage: who may hold how much of a device, and when.

| stage | generators | teachers | learner |
|---|---|---|---|
| rollout | awake | asleep | asleep |
| refine, score | asleep | awake | asleep |
| learn | asleep | asleep | awake |
| sync | weights | weights if they are pushed, else asleep | weights |

At most one role is awake at any time, also in between: all that give room have done so before one takes
it. In `sync` both ends of the push must hold weights; caches, gradients and optimizer states are away.
An evaluation is a `rollout`; checkpoints, saved or loaded, are a `learn`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from trd_ray.roles import Role
from trd_ray.stage_clock import Stage


class Residence(StrEnum):
    """What a role holds on its devices."""

    ASLEEP = "asleep"
    """As little as it can."""
    WEIGHTS = "weights"
    """Its weights, so that they can be sent or received; it cannot work."""
    AWAKE = "awake"
    """All that it works with."""


_SIZE = {Residence.ASLEEP: 0, Residence.WEIGHTS: 1, Residence.AWAKE: 2}
_WORKER = {
    Stage.ROLLOUT: Role.GENERATOR,
    Stage.REFINE: Role.TEACHER,
    Stage.SCORE: Role.TEACHER,
    Stage.LEARN: Role.LEARNER,
}


class Tenant(Protocol):
    """All actors of one role."""

    async def reside(self, residence: Residence) -> None:
        """Returns when every actor holds that much. Raises `ActorTimeoutError` with the culprit."""
        ...


class NoTurns:
    """Implements `DeviceTurns` where each role has its own devices: every role is awake always."""

    async def begin(self, stage: Stage) -> None:
        return


class RoleTurns:
    """Implements `DeviceTurns` where roles share devices."""

    def __init__(
        self, tenants: Mapping[Role, Tenant], *, at: Mapping[Role, Residence], pushes_teacher: bool
    ) -> None:
        """
        Args:
            tenants: the roles that there are.
            at: what each of them holds now.
            pushes_teacher: a push goes to the teachers too.
        """
        if missing := tenants.keys() ^ at.keys():
            raise ValueError(f"RoleTurns: {sorted(missing)} in one of tenants and at only; expected in both")
        self._tenants = dict(tenants)
        self._at: dict[Role, Residence | None] = dict(at)
        self._pushes_teacher = pushes_teacher
        self._lock = asyncio.Lock()

    async def begin(self, stage: Stage) -> None:
        """Returns when the devices belong to the role that works in `stage`."""
        async with self._lock:
            wanted = {role: self._wanted(role, stage) for role in self._tenants}
            # A role that failed to move may hold anything: it gives room with the others.
            leaving = {
                role: residence
                for role, residence in wanted.items()
                if (now := self._at[role]) is None or _SIZE[residence] < _SIZE[now]
            }
            await asyncio.gather(*(self._move(role, to) for role, to in leaving.items()))
            for role, residence in wanted.items():
                await self._move(role, residence)

    def _wanted(self, role: Role, stage: Stage) -> Residence:
        if stage is not Stage.SYNC:
            return Residence.AWAKE if role is _WORKER[stage] else Residence.ASLEEP
        pushed = role is not Role.TEACHER or self._pushes_teacher
        return Residence.WEIGHTS if pushed else Residence.ASLEEP

    async def _move(self, role: Role, residence: Residence) -> None:
        if self._at[role] is residence:
            return
        self._at[role] = None
        await self._tenants[role].reside(residence)
        self._at[role] = residence
