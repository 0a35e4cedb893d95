"""Every role as a Ray actor: cluster, placement, actors, connections, and their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from actors.buffer import BufferActor
from actors.calls import call, call_all
from actors.cluster import actor_log_folder, join_cluster, leave_cluster
from actors.engine import EngineOptions
from actors.generator import GeneratorActor
from actors.handles import NamedActor, RayBuffer, RayGenerators, RayTeachers
from actors.learner import LearnerRankActor
from actors.learner_group import RayLearner
from actors.learner_senders import Which
from actors.placement import actor_options, gpu_ids, reserve
from actors.teacher import ScorerOptions, TeacherActor
from actors.turns import ray_turns, start_asleep
from actors.weight_sync import PushGroup, RayWeightSync
from trd_ray.assembly import Roles, RunInputs
from trd_ray.choices import Device
from trd_ray.config import EngineConfig, TrdConfig
from trd_ray.errors import ActorTimeoutError, PlacementError, RunFailedError, describe
from trd_ray.placement_plan import PlacementPlan, Role, generator_plan, placement_plan

log = logging.getLogger(__name__)

_SHUTDOWN_S = 30.0
# One batch computes while another waits at the engine, so that it never runs dry.
_SLOTS_PER_SEQUENCE = 2
# More than a step ever has in flight; the pipeline bounds the number of requests, not the actor.
_CONCURRENT_CALLS = 100_000


@dataclass(frozen=True, kw_only=True)
class RayGroups:
    """The actors of a run, by role."""

    learners: tuple[NamedActor, ...]
    generators: tuple[NamedActor, ...]
    teachers: tuple[NamedActor, ...]
    buffers: tuple[NamedActor, ...]


@dataclass(frozen=True, kw_only=True)
class RayRoles:
    """Roles, and what a check may ask of them beyond the Protocols."""

    roles: Roles
    learner: RayLearner
    groups: RayGroups


@asynccontextmanager
async def ray_roles(config: TrdConfig, inputs: RunInputs) -> AsyncIterator[Roles]:
    """The roles of a run over Ray; nothing is left running afterwards."""
    async with ray_run(config, inputs) as running:
        yield running.roles


@asynccontextmanager
async def ray_run(config: TrdConfig, inputs: RunInputs) -> AsyncIterator[RayRoles]:
    """As `ray_roles`, with the actors themselves.

    Raises `PlacementError`, or what an actor raises while it starts.
    """
    async with _ray_groups(config, inputs, placement_plan(config)) as groups:
        yield await _connect(config, groups)


@asynccontextmanager
async def ray_generators(config: TrdConfig, inputs: RunInputs) -> AsyncIterator[RayGenerators]:
    """Only the generators, with the weights of the student's folder: for an evaluation."""
    async with _ray_groups(config, inputs, generator_plan(config)) as groups:
        await _start(groups.generators, timeout_s=config.timeouts.start_s)
        yield _generators(config, groups)


@asynccontextmanager
async def _ray_groups(config: TrdConfig, inputs: RunInputs, plan: PlacementPlan) -> AsyncIterator[RayGroups]:
    join_cluster(config.ray)
    try:
        _check_meeting_place(config)
        log.info("actor logs are in %s", actor_log_folder())
        placement = await reserve(plan, timeout_s=config.timeouts.placement_s)
        try:
            groups = await _create(config, inputs, plan, placement)
            try:
                yield groups
            finally:
                await _shut_down(groups)
        finally:
            remove_placement_group(placement)
    finally:
        leave_cluster()


def _check_meeting_place(config: TrdConfig) -> None:
    """Ranks and generators on other machines cannot meet at a loopback address."""
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    if num_nodes > 1 and config.weight_sync.host.startswith("127."):
        raise PlacementError(
            describe(
                "the actors may be on several machines, and would meet on loopback",
                where="weight_sync.host",
                got=f"{config.weight_sync.host}, {num_nodes} nodes",
                expected="the address of the node of the first learner rank",
                remedy="set weight_sync.host to the head node's address, and run the learner there",
            )
        )


async def _start(actors: tuple[NamedActor, ...], *, timeout_s: float) -> None:
    await call_all(
        [actor.handle.start.remote() for actor in actors],
        actors=[actor.name for actor in actors],
        method="start",
        timeout_s=timeout_s,
    )


def _makers(config: TrdConfig, inputs: RunInputs) -> dict[Role, Callable[[int, dict[str, Any]], Any]]:
    """What makes the actor of an index with Ray's options. Engines come first: see `start_asleep`."""
    return {
        Role.GENERATOR: lambda i, options: GeneratorActor.options(
            **options, max_concurrency=_CONCURRENT_CALLS
        ).remote(_generator_engine(config, inputs, index=i)),
        Role.TEACHER: lambda i, options: TeacherActor.options(
            **options, max_concurrency=_CONCURRENT_CALLS
        ).remote(
            model=inputs.teacher_path.resolve(),
            engine=_teacher_engine(config, inputs, index=i),
            scorer=_scorer(config),
            top_k=config.method.num_targets,
        ),
        Role.LEARNER: lambda i, options: LearnerRankActor.options(**options).remote(
            config.learner,
            student=inputs.student_path.resolve(),
            teacher=inputs.teacher_path.resolve(),
            method=config.method,
            score=config.teacher.score,
            rank=i,
            world_size=config.learner.num_ranks,
            num_steps=config.run.num_steps,
            seed=config.run.seed,
            timeout_s=config.timeouts.learn_s,
        ),
        Role.BUFFER: lambda i, options: BufferActor.options(
            **options, max_concurrency=_CONCURRENT_CALLS
        ).remote(capacity=config.pipeline.trajectories_per_step),
    }


async def _create(
    config: TrdConfig, inputs: RunInputs, plan: PlacementPlan, placement: PlacementGroup
) -> RayGroups:
    limits = config.timeouts
    gpus = await gpu_ids(plan, placement, timeout_s=limits.placement_s)
    threads = {
        Role.LEARNER: config.learner.threads,
        Role.GENERATOR: config.generator.engine.threads,
        Role.TEACHER: config.teacher.engine.threads,
        Role.BUFFER: 1,
    }
    made: dict[Role, list[NamedActor]] = {}
    for role, make in _makers(config, inputs).items():
        seats = [seat for seat in plan.seats if seat.role is role]
        made[role] = [
            NamedActor(
                name=seat.name,
                handle=make(seat.index, actor_options(seat, placement, gpus=gpus, threads=threads[role])),
            )
            for seat in seats
        ]
        shared = any(plan.bundles[seat.bundle].shared for seat in seats)
        if shared and role in (Role.GENERATOR, Role.TEACHER):
            await start_asleep(made[role], start_timeout_s=limits.start_s, turn_timeout_s=limits.sync_s)
    return RayGroups(
        learners=tuple(made[Role.LEARNER]),
        generators=tuple(made[Role.GENERATOR]),
        teachers=tuple(made[Role.TEACHER]),
        buffers=tuple(made[Role.BUFFER]),
    )


def engine_options(
    engine: EngineConfig, *, model: str, seed: int, weight_transfer: str | None, takes_turns: bool = False
) -> EngineOptions:
    """A role's engine block as the engine takes it."""
    return EngineOptions(
        model=model,
        dtype=engine.dtype.value,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens or None,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_gib=engine.kv_cache_gib,
        threads=engine.threads,
        enforce_eager=engine.enforce_eager,
        tensor_parallel_size=engine.tensor_parallel_size,
        device=engine.device.value,
        seed=seed,
        prefix_caching=engine.prefix_caching,
        weight_transfer_backend=weight_transfer,
        sleep_mode=takes_turns and engine.device is Device.CUDA,
    )


def _generator_engine(config: TrdConfig, inputs: RunInputs, *, index: int) -> EngineOptions:
    return engine_options(
        config.generator.engine,
        model=str(inputs.student_path.resolve()),
        seed=config.run.seed + index,
        weight_transfer=config.weight_sync.backend.value,
        takes_turns=config.colocated,
    )


def _teacher_engine(config: TrdConfig, inputs: RunInputs, *, index: int) -> EngineOptions | None:
    if not config.teacher_engine:
        return None
    return engine_options(
        config.teacher.engine,
        model=str(inputs.teacher_path.resolve()),
        seed=config.run.seed + index,
        weight_transfer=config.weight_sync.backend.value if config.pushes_teacher else None,
        takes_turns=config.colocated,
    )


def _scorer(config: TrdConfig) -> ScorerOptions | None:
    if not config.teacher_scorer:
        return None
    return ScorerOptions(
        score_dtype=config.teacher.score_dtype,
        hidden_dtype=config.teacher.hidden_dtype,
        batch_tokens=config.teacher.score_batch_tokens,
        threads=config.teacher.engine.threads,
        device=config.teacher.engine.device,
    )


def _generators(config: TrdConfig, groups: RayGroups) -> RayGenerators:
    return RayGenerators(
        groups.generators,
        num_slots=_SLOTS_PER_SEQUENCE * config.generator.engine.max_num_seqs,
        timeout_s=config.timeouts.generate_s,
    )


async def _connect(config: TrdConfig, groups: RayGroups) -> RayRoles:
    """Wait until every actor serves, then bring learner and generators together."""
    limits = config.timeouts
    learner = RayLearner(groups.learners, timeout_s=limits.learn_s)
    await asyncio.gather(
        learner.setup(host=config.weight_sync.host, timeout_s=limits.start_s),
        _start((*groups.generators, *groups.teachers), timeout_s=limits.start_s),
    )
    weight_sync = _weight_sync(config, groups)
    await weight_sync.connect()
    roles = Roles(
        generator=_generators(config, groups),
        teacher=RayTeachers(
            groups.teachers,
            num_slots=_SLOTS_PER_SEQUENCE * config.teacher.engine.max_num_seqs,
            timeout_s=limits.generate_s,
        ),
        learner=learner,
        weight_sync=weight_sync,
        buffer=RayBuffer(groups.buffers[0], timeout_s=limits.generate_s),
        turns=ray_turns(
            config, learners=groups.learners, generators=groups.generators, teachers=groups.teachers
        ),
    )
    return RayRoles(roles=roles, learner=learner, groups=groups)


def _weight_sync(config: TrdConfig, groups: RayGroups) -> RayWeightSync:
    teachers = None
    if config.pushes_teacher:
        teachers = _push_group(Which.TEACHER, groups.teachers, config.teacher.engine)
    return RayWeightSync(
        config.weight_sync,
        learners=groups.learners,
        generators=_push_group(Which.STUDENT, groups.generators, config.generator.engine),
        teachers=teachers,
        timeout_s=config.timeouts.sync_s,
    )


def _push_group(which: Which, actors: tuple[NamedActor, ...], engine: EngineConfig) -> PushGroup:
    return PushGroup(
        which=which,
        actors=actors,
        dtype=engine.dtype.value,
        workers_per_actor=engine.tensor_parallel_size,
    )


async def _shut_down(groups: RayGroups) -> None:
    """End engines in order, then every actor; an actor that is dead or hangs is killed."""
    ending = [(actor, "shutdown") for actor in (*groups.generators, *groups.teachers)]
    ending += [(actor, "close") for actor in groups.learners]
    await asyncio.gather(*(_end(actor, method) for actor, method in ending))
    for actor in (*groups.generators, *groups.teachers, *groups.learners, *groups.buffers):
        ray.kill(actor.handle)


async def _end(actor: NamedActor, method: str) -> None:
    try:
        ref = getattr(actor.handle, method).remote()
        await call(ref, actor=actor.name, method=method, timeout_s=_SHUTDOWN_S)
    except (ActorTimeoutError, RunFailedError, RayError) as error:
        log.warning("%s did not end by itself: %s", actor.name, str(error).splitlines()[0])
