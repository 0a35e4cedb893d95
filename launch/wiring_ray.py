"""Every role as a Ray actor: cluster, placement, actors, connections, and their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from ray.exceptions import RayError
from ray.util.placement_group import remove_placement_group

from actors.calls import call
from actors.cluster import actor_log_folder, join_cluster, leave_cluster
from actors.handles import RayGenerators, RayTeachers
from actors.learner_group import RayLearner
from actors.learner_senders import Which
from actors.meeting_place import meeting_host
from actors.members import NamedActor, kill
from actors.placement import gpu_ids, reserve
from actors.pool import EnginePool
from actors.pool_limits import PoolLimits
from actors.turns import RayTenant, ray_turns
from actors.weight_sync import WAITS_PER_PUSH, PushGroup, RayWeightSync
from launch.ray_actors import REAL_ACTORS, ActorClasses, ActorMaker
from trd_ray.activity import RoleActivity
from trd_ray.activity_records import LEARNER
from trd_ray.assembly import Roles, RunInputs
from trd_ray.buffer_log import run_log
from trd_ray.config import EngineConfig, FaultConfig, TrdConfig
from trd_ray.device_turns import Residence
from trd_ray.errors import ActorTimeoutError, RunFailedError, brief
from trd_ray.placement_plan import PlacementPlan, generator_plan, placement_plan
from trd_ray.recovery import Past, RecoveringLearner
from trd_ray.replay_plan import ModelPaths
from trd_ray.roles import Role
from trd_ray.run_folder import RunFolder

log = logging.getLogger(__name__)

_SHUTDOWN_S = 30.0
# One batch computes while another waits at the engine, so that it never runs dry.
_SLOTS_PER_SEQUENCE = 2


@dataclass(frozen=True, kw_only=True)
class RayGroups:
    """The groups of a run's actors."""

    learner: RayLearner | None
    generators: EnginePool | None
    teachers: EnginePool | None

    @property
    def actors(self) -> tuple[NamedActor, ...]:
        """Those that are there now, engines first."""
        pools = (self.generators, self.teachers)
        engines = tuple(actor for pool in pools if pool is not None for actor in pool.actors)
        return engines + (self.learner.ranks if self.learner is not None else ())


@dataclass(frozen=True, kw_only=True)
class RayRoles:
    """Roles, and what a check may ask of them beyond the Protocols."""

    roles: Roles
    groups: RayGroups


@asynccontextmanager
async def ray_roles(
    config: TrdConfig,
    inputs: RunInputs,
    folder: RunFolder,
    activity: RoleActivity,
    classes: ActorClasses = REAL_ACTORS,
) -> AsyncIterator[Roles]:
    """The roles of a run over Ray; nothing is left running afterwards."""
    async with ray_run(config, inputs, folder, activity, classes) as running:
        yield running.roles


@asynccontextmanager
async def ray_run(
    config: TrdConfig,
    inputs: RunInputs,
    folder: RunFolder,
    activity: RoleActivity,
    classes: ActorClasses = REAL_ACTORS,
) -> AsyncIterator[RayRoles]:
    """As `ray_roles`, with the groups themselves.

    Raises `PlacementError`, or what an actor raises while it starts.
    """
    async with (
        ray_groups(config, inputs, placement_plan(config), activity, classes) as groups,
        AsyncExitStack() as watching,
    ):
        roles = await _connect(config, groups, folder, activity)
        for pool in (groups.generators, groups.teachers):
            if pool is not None:
                await watching.enter_async_context(pool.watched())
        yield RayRoles(roles=roles, groups=groups)


@asynccontextmanager
async def ray_generators(config: TrdConfig, inputs: RunInputs) -> AsyncIterator[RayGenerators]:
    """Only the generators, with the weights of the student's folder: for an evaluation."""
    async with ray_groups(config, inputs, generator_plan(config), RoleActivity()) as groups:
        generators = groups.generators
        assert generators is not None  # they are what is asked for
        await generators.start()
        async with generators.watched():
            yield RayGenerators(generators)


@asynccontextmanager
async def ray_groups(
    config: TrdConfig,
    inputs: RunInputs | ModelPaths,
    plan: PlacementPlan,
    activity: RoleActivity,
    classes: ActorClasses = REAL_ACTORS,
) -> AsyncIterator[RayGroups]:
    """The actors of a plan, created but not set up; nothing is left running afterwards.

    Learner ranks need `ModelPaths` only. Raises `PlacementError`.
    """
    join_cluster(config.ray)
    try:
        meeting_host(config.weight_sync)  # one that cannot do is refused before anything is started
        log.info("actor logs are in %s", actor_log_folder())
        placement = await reserve(plan, timeout_s=config.timeouts.placement_s)
        try:
            gpus = await gpu_ids(plan, placement, timeout_s=config.timeouts.placement_s)
            maker = ActorMaker(config, inputs, plan, placement, gpus=gpus, classes=classes)
            groups = await _groups(config, maker, activity)
            try:
                yield groups
            finally:
                await _shut_down(groups)
        finally:
            remove_placement_group(placement)
    finally:
        leave_cluster()


async def _groups(config: TrdConfig, maker: ActorMaker, activity: RoleActivity) -> RayGroups:
    """Engines first: where roles share devices, each finds room to start in once the last one sleeps."""
    pools = {}
    for role, engine in ((Role.GENERATOR, config.generator.engine), (Role.TEACHER, config.teacher.engine)):
        pools[role] = pool = _pool(config, role, maker, engine, activity)
        if pool is not None and maker.shares_devices:
            await pool.start()
            await RayTenant(lambda pool=pool: pool.actors, timeout_s=config.timeouts.sync_s).reside(
                Residence.ASLEEP
            )
    ranks = maker.of_role(Role.LEARNER)
    learner = RayLearner(
        ranks,
        create=maker.maker(Role.LEARNER),
        host=lambda: meeting_host(config.weight_sync),
        run_dir=RunFolder(config.run.dir).path,
        start_s=config.timeouts.start_s,
        timeout_s=config.timeouts.learn_s,
    )
    return RayGroups(
        learner=learner if ranks else None,
        generators=pools[Role.GENERATOR],
        teachers=pools[Role.TEACHER],
    )


def _pool(
    config: TrdConfig, role: Role, maker: ActorMaker, engine: EngineConfig, activity: RoleActivity
) -> EnginePool | None:
    actors, limits = maker.of_role(role), config.timeouts
    if not actors:
        return None
    return EnginePool(
        role,
        actors,
        create=maker.maker(role),
        limits=PoolLimits(
            request_s=limits.generate_s,
            start_s=limits.start_s,
            # It may have to wait for a step of the learner and for a push before it gets its own.
            replace_s=limits.start_s + limits.learn_s + WAITS_PER_PUSH * limits.sync_s,
            num_slots=_SLOTS_PER_SEQUENCE * engine.max_num_seqs,
        ),
        faults=_faults(config),
        activity=activity,
    )


def _faults(config: TrdConfig) -> FaultConfig:
    # A replacement would start, and be pushed to, in the turn of another role that holds the device.
    return replace(config.faults, max_restarts=0) if config.colocated else config.faults


async def _connect(config: TrdConfig, groups: RayGroups, folder: RunFolder, activity: RoleActivity) -> Roles:
    """Wait until every actor serves, then bring learner and engines together."""
    learner, generators, teachers = groups.learner, groups.generators, groups.teachers
    assert learner is not None and generators is not None  # a run has both
    await asyncio.gather(
        learner.setup(), generators.start(), *([] if teachers is None else [teachers.start()])
    )
    recovering = RecoveringLearner(
        learner,
        _weight_sync(config, learner, generators, teachers),
        restart=learner.restart,
        past=Past(
            folder=folder,
            steps=run_log(config.pipeline, folder) if config.pipeline.log_targets else None,
            method=config.method,
            learner=config.learner,
        ),
        max_restarts=_faults(config).max_restarts,
        down=lambda: activity.down(LEARNER),
    )
    generators.follow_weights(recovering.catch_up)
    if config.pushes_teacher and teachers is not None:
        teachers.follow_weights(recovering.catch_up)
    return Roles(
        generator=RayGenerators(generators),
        teacher=RayTeachers(teachers),
        learner=recovering,
        weight_sync=recovering,
        turns=ray_turns(
            config,
            learners=lambda: learner.ranks,
            generators=lambda: generators.actors,
            teachers=None if teachers is None else lambda: teachers.actors,
        ),
    )


def _weight_sync(
    config: TrdConfig, learner: RayLearner, generators: EnginePool, teachers: EnginePool | None
) -> RayWeightSync:
    followers = None
    if config.pushes_teacher and teachers is not None:
        followers = _push_group(Which.TEACHER, teachers, config.teacher.engine)
    return RayWeightSync(
        config.weight_sync,
        learners=lambda: learner.ranks,
        address=lambda: learner.address,
        generators=_push_group(Which.STUDENT, generators, config.generator.engine),
        teachers=followers,
        timeout_s=config.timeouts.sync_s,
        max_tries=config.faults.max_attempts,
        replace_s=config.timeouts.start_s,
    )


def _push_group(which: Which, pool: EnginePool, engine: EngineConfig) -> PushGroup:
    return PushGroup(
        which=which,
        pool=pool,
        dtype=engine.dtype.value,
        workers_per_actor=engine.tensor_parallel_size,
    )


async def _shut_down(groups: RayGroups) -> None:
    """End engines in order, then every actor; an actor that is dead or hangs is killed."""
    await asyncio.gather(*(_end(actor) for actor in groups.actors))
    await asyncio.gather(*(kill(actor) for actor in groups.actors))


async def _end(actor: NamedActor) -> None:
    if not actor.has_place:
        return  # nothing to end yet
    try:
        await call(actor.handle.shutdown.remote(), actor=actor.name, method="shutdown", timeout_s=_SHUTDOWN_S)
    except (ActorTimeoutError, RunFailedError, RayError) as error:
        log.warning("%s did not end by itself: %s", actor.name, brief(error))
