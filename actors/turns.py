"""Turns on shared devices over Ray: tells every actor of a role how much of its devices it may hold.

Engines on GPUs use vLLM's sleep mode (`actors/engine_sleep.py`), learner ranks DeepSpeed's
`offload_states` (`actors/learner_offload.py`). On a CPU there is one memory and vLLM has no sleep mode:
there the same calls are made in the same order, and all that they change is that an engine out of its
turn refuses requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actors.calls import call_all
from actors.members import NamedActor
from trd_ray.config import TrdConfig
from trd_ray.device_turns import NoTurns, Residence, RoleTurns, Tenant
from trd_ray.interfaces import DeviceTurns
from trd_ray.roles import Role


class RayTenant:
    """Implements `Tenant` over the actors of one role, each of which has a method `reside`."""

    def __init__(self, actors: Callable[[], Sequence[NamedActor]], *, timeout_s: float) -> None:
        """
        Args:
            actors: those that there are now.
            timeout_s: longest time in which an actor may take or give room.
        """
        self._actors = actors
        self._timeout_s = timeout_s

    async def reside(self, residence: Residence) -> None:
        actors = self._actors()
        await call_all(
            [actor.handle.reside.remote(residence, self._timeout_s) for actor in actors],
            actors=[actor.name for actor in actors],
            method=f"reside({residence.value})",
            # The actor limits the wait itself and says more; this is the last resort.
            timeout_s=2 * self._timeout_s,
        )


def ray_turns(
    config: TrdConfig,
    *,
    learners: Callable[[], Sequence[NamedActor]],
    generators: Callable[[], Sequence[NamedActor]],
    teachers: Callable[[], Sequence[NamedActor]] | None,
) -> DeviceTurns:
    """The turns of a run whose engines are asleep and whose learner is awake."""
    if not config.colocated:
        return NoTurns()
    groups = {Role.GENERATOR: generators, Role.TEACHER: teachers, Role.LEARNER: learners}
    tenants: dict[Role, Tenant] = {
        role: RayTenant(actors, timeout_s=config.timeouts.sync_s)
        for role, actors in groups.items()
        if actors is not None
    }
    at = dict.fromkeys(tenants, Residence.ASLEEP) | {Role.LEARNER: Residence.AWAKE}
    return RoleTurns(tenants, at=at, pushes_teacher=config.pushes_teacher)
