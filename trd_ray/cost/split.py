"""A better division of the devices among the roles, as far as the rates tell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trd_ray.choices import Device
from trd_ray.config import TrdConfig
from trd_ray.cost.devices import role_units
from trd_ray.cost.stage_times import StepTime
from trd_ray.roles import Role

_ACTORS_KEY = {
    Role.GENERATOR: "generator.num_actors",
    Role.TEACHER: "teacher.num_actors",
    Role.LEARNER: "learner.num_ranks",
}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Actors of each role on the devices that there are."""

    num_actors: Mapping[Role, int]
    seconds: float
    """Of a step, by the measure that was minimised."""
    now_s: float
    """The same measure, as configured."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """What to change in the configuration."""
        return tuple(f"{_ACTORS_KEY[role]}={number}" for role, number in self.num_actors.items())


def no_split_because(config: TrdConfig, time: StepTime | None) -> str | None:
    """Why nothing can be suggested; None if something can."""
    if time is None or time.bottleneck is None:
        return "no rates known"
    if config.learner.device is Device.CPU:
        return "on a CPU the actors share its cores, and more of them get no more done"
    if config.colocated:
        return "roles take turns on all devices (placement.mode=colocated)"
    missing = [stage.value for stage in time.unknown if stage.value != "sync"]
    return f"no rate known of {', '.join(missing)}" if missing else None


def suggest_split(config: TrdConfig, time: StepTime) -> Split:
    """The division that makes a step shortest; the configured one if none is shorter.

    A stage is taken to be twice as fast on twice the devices, but for its longest answer; how the stages
    overlap is `StepTime.together`.
    """
    units = role_units(config)
    total = sum(actors * each for actors, each in units.values())
    now = {role: actors for role, (actors, _) in units.items()}

    def seconds(actors: Mapping[Role, int]) -> float:
        by_role = dict.fromkeys(units, 0.0)
        for stage in time.stages:
            if stage.work_s is not None:
                devices = stage.num_devices * actors[stage.role] / now[stage.role]
                fixed = stage.num_tokens == 0  # a push takes as long whoever waits
                took = stage.work_s if fixed else max(stage.work_s / devices, stage.longest_s)
                by_role[stage.role] += took
        return time.together(by_role)

    # Of equal ones that with the fewest changes, so that a tie suggests nothing.
    best = min(
        _divisions(units, total),
        key=lambda actors: (seconds(actors), sum(abs(actors[role] - now[role]) for role in now)),
    )
    return Split(num_actors=best, seconds=seconds(best), now_s=seconds(now))


def _divisions(units: Mapping[Role, tuple[int, int]], total: int) -> Iterator[dict[Role, int]]:
    """Every way to give `total` devices to the roles, one actor each at least; ranks take what is left."""
    engines = [role for role in units if role is not Role.LEARNER]
    ranges = [range(1, total // units[role][1] + 1) for role in engines]
    for numbers in itertools.product(*ranges):
        left = total - sum(n * units[role][1] for role, n in zip(engines, numbers, strict=True))
        if left >= 1:
            yield dict(zip(engines, numbers, strict=True)) | {Role.LEARNER: left}
