"""All of a plan in one record: memory, traffic, times, bottleneck, suggested split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trd_ray.config import TrdConfig
from trd_ray.cost.buffers import Buffer, target_buffers
from trd_ray.cost.rates import Rates, known_rates
from trd_ray.cost.run_rates import rates_of_run
from trd_ray.cost.split import Split, no_split_because, suggest_split
from trd_ray.cost.stage_times import StepTime, step_time
from trd_ray.cost.traffic import Flow, num_micro_batches, step_traffic
from trd_ray.cost.workload import Lengths, for_method, longest_lengths, with_means
from trd_ray.errors import ConfigError, describe
from trd_ray.memory_checks import MemoryCheck, memory_checks
from trd_ray.memory_plan import RoleMemory, memory_plan
from trd_ray.roles import Role

if TYPE_CHECKING:
    from trd_ray.model_files import ModelFacts


@dataclass(frozen=True, kw_only=True)
class GivenLengths:
    """Mean tokens that a user knows; None: unknown."""

    prompt: float | None = None
    rollout: float | None = None
    refinement: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "rollout", "refinement"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(
                    describe(
                        "a length is no number of tokens", where=f"--{name}-tokens", got=value,
                        expected="a finite number", remedy="give the mean, or leave it out",
                    )
                )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CostPlan:
    """What a run is expected to cost, a step."""

    lengths: Lengths
    num_trajectories: int
    num_micro_batches: int
    roles: tuple[RoleMemory, ...]
    checks: tuple[MemoryCheck, ...]
    buffers: tuple[Buffer, ...]
    flows: tuple[Flow, ...]
    rates: Rates | None
    """None: none are known for these models and devices."""
    time: StepTime | None
    split: Split | None
    no_split: str | None
    """Why no split is suggested."""
    split_checks: tuple[MemoryCheck, ...] = ()
    """What does not fit in the suggested split."""

    def to_json(self) -> dict[str, object]:
        """One object; bytes, seconds and tokens, of one step unless they are memory."""
        return {
            "lengths": asdict(self.lengths),
            "num_trajectories": self.num_trajectories,
            "num_micro_batches": self.num_micro_batches,
            "memory": [_role_json(role) for role in self.roles],
            "buffers": [asdict(buffer) for buffer in self.buffers],
            "checks": [_check_json(check) for check in self.checks],
            "traffic": [asdict(flow) for flow in self.flows],
            "rates": None if self.rates is None else _rates_json(self.rates),
            "time": None if self.time is None else _time_json(self.time),
            "split": None if self.split is None else _split_json(self.split, self.split_checks),
            "no_split": self.no_split,
        }


def cost_plan(
    config: TrdConfig,
    *,
    student: ModelFacts,
    teacher: ModelFacts,
    rates_from: Path | None = None,
    given: GivenLengths | None = None,
) -> CostPlan:
    """Plan a run.

    Args:
        rates_from: a run folder whose rates and lengths are taken; else those that are shipped, if they fit.

    Raises what `rates_of_run` raises.
    """
    if rates_from is not None:
        rates: Rates | None = rates_of_run(rates_from)
    else:
        rates = known_rates(config, student=student, teacher=teacher)
    lengths = _lengths(config, rates, given or GivenLengths())
    time = None if rates is None else step_time(config, lengths, rates, student=student, teacher=teacher)
    roles = memory_plan(config, student=student, teacher=teacher)
    no_split = no_split_because(config, time)
    split = suggest_split(config, time) if time is not None and no_split is None else None
    return CostPlan(
        lengths=lengths,
        num_trajectories=config.pipeline.trajectories_per_step,
        num_micro_batches=num_micro_batches(config, lengths),
        roles=roles,
        checks=memory_checks(config, roles),
        buffers=target_buffers(config, lengths, teacher=teacher),
        flows=step_traffic(config, lengths, student=student, teacher=teacher),
        rates=rates,
        time=time,
        split=split,
        no_split=no_split,
        split_checks=() if split is None else _misfits(config, split, student=student, teacher=teacher),
    )


def _lengths(config: TrdConfig, rates: Rates | None, given: GivenLengths) -> Lengths:
    measured = None if rates is None else rates.lengths
    return with_means(
        config,
        longest_lengths(config) if measured is None else for_method(config, measured),
        prompt=given.prompt,
        rollout=given.rollout,
        refinement=given.refinement,
    )


def _misfits(
    config: TrdConfig, split: Split, *, student: ModelFacts, teacher: ModelFacts
) -> tuple[MemoryCheck, ...]:
    numbers = split.num_actors
    changed = replace(
        config,
        generator=replace(config.generator, num_actors=numbers[Role.GENERATOR]),
        teacher=replace(config.teacher, num_actors=numbers.get(Role.TEACHER, config.teacher.num_actors)),
        learner=replace(config.learner, num_ranks=numbers[Role.LEARNER]),
    )
    roles = memory_plan(changed, student=student, teacher=teacher)
    return tuple(check for check in memory_checks(changed, roles) if not check.fits)


def _role_json(role: RoleMemory) -> dict[str, object]:
    kv = role.kv
    return {
        "role": role.role.value,
        "num_actors": role.num_actors,
        "parts": dict(role.parts),
        "total": role.total,
        "kv_bytes_per_token": None if kv is None else kv.bytes_per_token,
        "kv_bytes": None if kv is None else kv.num_bytes,
    }


def _check_json(check: MemoryCheck) -> dict[str, object]:
    return {
        "role": check.role.value, "what": check.what, "needed": check.needed, "available": check.available,
        "fits": check.fits, "remedy": "" if check.fits else check.remedy,
    }  # fmt: skip


def _rates_json(rates: Rates) -> dict[str, object]:
    return {
        "name": rates.name, "kind": rates.kind.value, "source": rates.source, "scales": rates.scales,
        "tokens_per_s": {stage.value: rate for stage, rate in rates.tokens_per_s.items()},
        "prompt_tokens_per_s": rates.prompt_tokens_per_s, "token_latency_s": rates.token_latency_s,
    }  # fmt: skip


def _time_json(time: StepTime) -> dict[str, object]:
    return {
        "stages": {
            each.stage.value: {"role": each.role.value, "num_devices": each.num_devices,
                               "num_tokens": each.num_tokens, "seconds": each.seconds}
            for each in time.stages
        },
        "role_s": {role.value: seconds for role, seconds in time.role_s.items()},
        "other_s": time.other_s,
        "step_least_s": time.least_s,
        "step_most_s": time.most_s,
        "unknown": [stage.value for stage in time.unknown],
        "bottleneck": None if time.bottleneck is None else time.bottleneck.value,
    }  # fmt: skip


def _split_json(split: Split, misfits: tuple[MemoryCheck, ...]) -> Mapping[str, object]:
    return {
        "num_actors": {role.value: number for role, number in split.num_actors.items()},
        "overrides": list(split.overrides),
        "seconds": split.seconds,
        "now_s": split.now_s,
        "does_not_fit": [_check_json(check) for check in misfits],
    }
