"""Expected seconds of each stage of a step, which role is the bottleneck, how long a step takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trd_ray.config import TrdConfig
from trd_ray.cost.devices import STAGE_ROLE, stage_devices
from trd_ray.cost.rates import Rates
from trd_ray.cost.workload import Lengths, step_work
from trd_ray.roles import Role
from trd_ray.stage_clock import Stage

if TYPE_CHECKING:
    from trd_ray.model_files import ModelFacts


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """One stage of a step."""

    stage: Stage
    role: Role
    num_devices: int
    num_tokens: float
    """Written, or read where nothing is written."""
    work_s: float | None
    """Device-seconds, if every device always has enough to do; None: no rate is known."""
    longest_s: float = 0.0
    """The longest answer that the options allow takes so long, on however many devices; 0: not known."""

    @property
    def seconds(self) -> float | None:
        return None if self.work_s is None else max(self.work_s / self.num_devices, self.longest_s)


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """A step's stages together."""

    stages: tuple[StageTime, ...]
    overlapping: bool
    """Roles work on several steps at once (`pipeline.max_staleness` above 0)."""
    streaming: bool
    """Within a step the stages overlap too (no `pipeline.stage_barrier`)."""
    other_s: float

    @property
    def unknown(self) -> tuple[Stage, ...]:
        """Stages without a rate."""
        return tuple(each.stage for each in self.stages if each.seconds is None)

    @property
    def role_s(self) -> dict[Role, float]:
        """What each role has to do in a step; stages without a rate are left out."""
        roles: dict[Role, float] = {}
        for each in self.stages:
            roles[each.role] = roles.get(each.role, 0.0) + (each.seconds or 0.0)
        return roles

    @property
    def bottleneck(self) -> Role | None:
        """The role with the most to do in a step; None if no rate is known."""
        busy = {role: seconds for role, seconds in self.role_s.items() if seconds > 0}
        return max(busy, key=lambda role: busy[role]) if busy else None

    @property
    def least_s(self) -> float:
        """No step can be shorter: where roles overlap, they do so without a gap."""
        return self.together(self.role_s) + (0.0 if self.overlapping else self.other_s)

    @property
    def most_s(self) -> float:
        """Every stage after the other."""
        return sum(self.role_s.values()) + self.other_s

    def together(self, role_s: Mapping[Role, float]) -> float:
        """Least seconds of a step in which each role has so much to do.

        The slowest role's, where roles work on several steps at once. Within one step the learner waits for
        the whole batch, so only generators and teachers overlap, and with a stage barrier nobody does.
        """
        if self.overlapping:
            return max(role_s.values(), default=0.0)
        engines = [seconds for role, seconds in role_s.items() if role is not Role.LEARNER]
        made_s = max(engines, default=0.0) if self.streaming else sum(engines)
        return made_s + role_s.get(Role.LEARNER, 0.0)


def step_time(
    config: TrdConfig, lengths: Lengths, rates: Rates, *, student: ModelFacts, teacher: ModelFacts
) -> StepTime:
    """The stages of one step with the configured devices."""
    devices = stage_devices(config)
    stages = []
    for stage, work in step_work(config, lengths).items():
        if not work.counted:
            continue
        factor = rates.factor(stage, student=student, teacher=teacher)
        work_s = _work_s(rates, stage, written=work.written, read=work.read)
        stages.append(
            StageTime(
                stage=stage,
                role=STAGE_ROLE[stage],
                num_devices=devices[stage],
                num_tokens=work.counted,
                work_s=None if work_s is None else work_s * factor,
                longest_s=(rates.token_latency_s or 0.0) * factor * _most_tokens(config).get(stage, 0),
            )
        )
    stages.append(
        StageTime(stage=Stage.SYNC, role=Role.LEARNER, num_devices=1, num_tokens=0, work_s=rates.sync_s)
    )
    return StepTime(
        stages=tuple(stages),
        overlapping=config.pipeline.max_staleness > 0,
        streaming=not config.pipeline.stage_barrier,
        other_s=rates.other_s,
    )


def _work_s(rates: Rates, stage: Stage, *, written: float, read: float) -> float | None:
    """Device-seconds with the models that the rates are of."""
    rate = rates.tokens_per_s.get(stage)
    if rate is None:
        return None
    if not written:
        return read / rate
    prompts_s = read / rates.prompt_tokens_per_s if rates.prompt_tokens_per_s else 0.0
    return written / rate + prompts_s


def _most_tokens(config: TrdConfig) -> Mapping[Stage, int]:
    return {
        Stage.ROLLOUT: config.generator.sampling.max_tokens,
        Stage.REFINE: config.teacher.sampling.max_tokens,
    }
