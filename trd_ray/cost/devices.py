"""How many devices each role computes on: GPUs, or actors on a CPU."""

from __future__ import annotations

from trd_ray.config import TrdConfig
from trd_ray.roles import Role
from trd_ray.stage_clock import Stage

STAGE_ROLE = {
    Stage.ROLLOUT: Role.GENERATOR,
    Stage.REFINE: Role.TEACHER,
    Stage.SCORE: Role.TEACHER,
    Stage.LEARN: Role.LEARNER,
    Stage.SYNC: Role.LEARNER,
}
"""Who works in a stage. A push holds up the generators too."""


def role_units(config: TrdConfig) -> dict[Role, tuple[int, int]]:
    """(actors, devices of each) of the roles that there are."""
    units = {Role.GENERATOR: (config.generator.num_actors, config.generator.engine.tensor_parallel_size)}
    if config.teacher_group:
        units[Role.TEACHER] = (config.teacher.num_actors, config.teacher.engine.tensor_parallel_size)
    return units | {Role.LEARNER: (config.learner.num_ranks, 1)}


def stage_devices(config: TrdConfig) -> dict[Stage, int]:
    """Devices that compute in each stage. A scorer takes one of an actor's devices, an engine all."""
    units = role_units(config)
    devices = {stage: units[role][0] * units[role][1] for stage, role in STAGE_ROLE.items() if role in units}
    if config.teacher_scorer:
        devices[Stage.SCORE] = config.teacher.num_actors
    return devices
