"""Which actors there are, what each is given, and which of them share devices.

A *bundle* is what a cluster manager reserves in one piece and on one node. Disaggregated, each actor
has a bundle of its own, so that an engine over several GPUs is on one node. Colocated, a bundle is a
*device group*: as many devices as the largest engine spans, with the actors of all roles that take
turns on them. This module knows no cluster; `actors/placement.py` reserves what is planned here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trd_ray.choices import Device, PlacementStrategy
from trd_ray.config import ResourceConfig, TrdConfig
from trd_ray.roles import Role

# Ray counts resources in ten-thousandths.
_GRAIN = 10_000


@dataclass(frozen=True, kw_only=True)
class Seat:
    """One actor's place."""

    role: Role
    index: int
    """Of the actor among those of its role."""
    bundle: int
    asked: ResourceConfig
    """What it asks of its bundle: fractions where others take turns with it."""
    devices: tuple[int, ...]
    """GPUs that it computes on, counted within the bundle; none on a CPU."""

    @property
    def name(self) -> str:
        return f"{self.role.value}-{self.index}"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What is reserved in one piece, on one node."""

    resources: ResourceConfig
    seats: tuple[Seat, ...]

    @property
    def num_gpus(self) -> int:
        return round(self.resources.gpus)

    @property
    def shared(self) -> bool:
        """Actors take turns in it."""
        return len(self.seats) > 1


@dataclass(frozen=True, kw_only=True)
class PlacementPlan:
    """All bundles of a run."""

    bundles: tuple[Bundle, ...]
    strategy: PlacementStrategy

    @property
    def seats(self) -> tuple[Seat, ...]:
        return tuple(seat for bundle in self.bundles for seat in bundle.seats)


def placement_plan(config: TrdConfig) -> PlacementPlan:
    """Every actor of a run. Disaggregated: learners, generators, teachers, in this order."""
    bundles = tuple(_device_groups(config)) if config.colocated else tuple(_own_bundles(config))
    return PlacementPlan(bundles=bundles, strategy=config.placement.strategy)


def generator_plan(config: TrdConfig) -> PlacementPlan:
    """The generators alone, each with devices of its own: for an evaluation."""
    return _plan_of(Role.GENERATOR, config)


def learner_plan(config: TrdConfig) -> PlacementPlan:
    """The learner ranks alone, each with devices of its own: for a replay."""
    return _plan_of(Role.LEARNER, config)


def _plan_of(role: Role, config: TrdConfig) -> PlacementPlan:
    ((num, resources),) = ((num, resources) for each, num, resources in _groups(config) if each is role)
    bundles = tuple(_own_bundle(role, i, i, resources) for i in range(num))
    return PlacementPlan(bundles=bundles, strategy=config.placement.strategy)


def _groups(config: TrdConfig) -> tuple[tuple[Role, int, ResourceConfig], ...]:
    """(role, number of actors, what each needs) of the roles that compute."""
    teachers = config.teacher.num_actors if config.teacher_group else 0
    return (
        (Role.LEARNER, config.learner.num_ranks, config.learner.resources),
        (Role.GENERATOR, config.generator.num_actors, config.generator.resources),
        (Role.TEACHER, teachers, config.teacher.resources),
    )


def _own_bundles(config: TrdConfig) -> Iterator[Bundle]:
    number = 0
    for role, num, resources in _groups(config):
        for index in range(num):
            yield _own_bundle(role, index, number, resources)
            number += 1


def _own_bundle(role: Role, index: int, bundle: int, resources: ResourceConfig) -> Bundle:
    devices = tuple(range(round(resources.gpus)))
    seat = Seat(role=role, index=index, bundle=bundle, asked=resources, devices=devices)
    return Bundle(resources=resources, seats=(seat,))


def _device_groups(config: TrdConfig) -> Iterator[Bundle]:
    """Learner rank i sits on device i, and so does the first device of each engine's share."""
    sizes = {
        Role.LEARNER: 1,
        Role.GENERATOR: config.generator.engine.tensor_parallel_size,
        Role.TEACHER: config.teacher.engine.tensor_parallel_size if config.teacher_group else 1,
    }
    width = max(sizes.values())
    on_gpus = config.learner.device is Device.CUDA
    for number in range(config.learner.num_ranks // width):
        members = [
            (role, number * (width // sizes[role]) + i, resources, i * sizes[role])
            for role, num, resources in _groups(config)
            for i in range(width // sizes[role] if num else 0)
        ]
        yield _shared_bundle(
            number,
            [(role, index, resources) for role, index, resources, _ in members],
            [tuple(range(first, first + sizes[role])) if on_gpus else () for role, _, _, first in members],
            num_gpus=width if on_gpus else 0,
        )


def _shared_bundle(
    number: int,
    members: Sequence[tuple[Role, int, ResourceConfig]],
    devices: Sequence[tuple[int, ...]],
    *,
    num_gpus: int,
) -> Bundle:
    """Cores are shared in turns, as GPUs are. Memory is not: a sleeping role keeps its own."""
    by_role: dict[Role, float] = {}
    for role, _, resources in members:
        by_role[role] = by_role.get(role, 0.0) + resources.cpus
    cpus = max(by_role.values())
    share = cpus / sum(by_role.values())
    # So many actors sit on the most crowded device, if each sits on one; more never fit on it.
    gpus = _floor(1 / math.ceil(len(members) / num_gpus)) if num_gpus else 0.0
    seats = tuple(
        Seat(
            role=role,
            index=index,
            bundle=number,
            asked=ResourceConfig(
                cpus=_floor(resources.cpus * share), gpus=gpus, memory_gib=resources.memory_gib
            ),
            devices=own,
        )
        for (role, index, resources), own in zip(members, devices, strict=True)
    )
    memory_gib = sum(resources.memory_gib for _, _, resources in members)
    return Bundle(
        resources=ResourceConfig(cpus=cpus, gpus=float(num_gpus), memory_gib=memory_gib), seats=seats
    )


def _floor(amount: float) -> float:
    """Rounded down to what Ray can count, so that the actors' sum never exceeds the bundle's."""
    return max(1, math.floor(amount * _GRAIN)) / _GRAIN
