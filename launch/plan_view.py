"""How a plan is shown, by `trd-ray plan` and by `--dry-run`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from launch.consoles import console, show
from trd_ray.config import TrdConfig
from trd_ray.cost.plan import CostPlan, GivenLengths, cost_plan
from trd_ray.cost.rates import Kind, Rates
from trd_ray.cost.stage_times import StepTime
from trd_ray.memory_plan import RoleMemory
from trd_ray.planned_models import planned_facts

_MIB = 2**20


def print_plan(config: TrdConfig, *, rates_from: Path | None, given: GivenLengths, as_json: bool) -> None:
    """Raises `ModelError` for an unknown model, and what `rates_of_run` raises."""
    student, teacher = planned_facts(config.student.model), planned_facts(config.teacher_model)
    plan = cost_plan(config, student=student, teacher=teacher, rates_from=rates_from, given=given)
    if as_json:
        show(json.dumps(plan.to_json(), allow_nan=False))
        return
    show(f"method: {config.method.sentence()}\n")
    show_memory(plan)
    show_costs(plan)


def show_memory(plan: CostPlan) -> None:
    """Memory of each role and device, and whether it fits."""
    console.print(_memory_table(plan.roles))
    for role in plan.roles:
        if role.kv is not None:
            show(f"{role.role.value}: {role.kv.words()}")
    for check in plan.checks:
        show(check.words())
    if not plan.checks:
        show("whether it fits is not known: set placement.device_memory_gib to the memory of one GPU")
    for buffer in plan.buffers:
        show(f"host memory: {buffer.words()}")


def show_costs(plan: CostPlan) -> None:
    """Tokens, bytes, seconds, the bottleneck and a better split."""
    lengths = plan.lengths
    show(
        f"\na step: {plan.num_trajectories} trajectories; mean tokens: prompt {lengths.prompt:,.0f}, "
        f"rollout {lengths.rollout:,.0f}, teacher's prompt {lengths.teacher_prompt:,.0f}, refinement "
        f"{lengths.refinement:,.0f}, trained on {lengths.trajectory:,.0f}\n  ({lengths.source})"
    )
    console.print(_traffic_table(plan))
    for line in _time_lines(plan):
        show(line)


def _memory_table(roles: tuple[RoleMemory, ...]) -> Table:
    table = Table("role", "actors", "part", "MiB a device", title="memory without libraries")
    for role in roles:
        for i, (part, num_bytes) in enumerate(role.parts.items()):
            first = (role.role.value, str(role.num_actors)) if i == 0 else ("", "")
            table.add_row(*first, part, f"{num_bytes / _MIB:,.1f}")
        table.add_row("", "", "total", f"{role.total / _MIB:,.1f}", end_section=True)
    return table


def _traffic_table(plan: CostPlan) -> Table:
    table = Table("what", "from", "to", "tokens", "MiB", title="between processes, a step")
    for flow in plan.flows:
        tokens = f"{flow.num_tokens:,}" if flow.num_tokens else ""
        table.add_row(flow.what, flow.source, flow.target, tokens, f"{flow.num_bytes / _MIB:,.2f}")
    table.add_row("total", "", "", "", f"{sum(flow.num_bytes for flow in plan.flows) / _MIB:,.2f}")
    return table


def _time_lines(plan: CostPlan) -> Iterator[str]:
    if plan.rates is None or plan.time is None:
        yield "stage times: no rates known for these models and devices: give --rates RUN_DIR of a short run"
        return
    yield _rates_words(plan.rates)
    time = plan.time
    for stage in time.stages:
        took = "no rate known" if stage.seconds is None else f"{stage.seconds:,.2f} s"
        tokens = f"{stage.num_tokens:,.0f} tokens" if stage.num_tokens else "one push"
        longest = " (set by the longest answer)" if stage.seconds == stage.longest_s > 0 else ""
        where = f"{stage.num_devices} {stage.role.value} devices{longest}"
        yield f"  {stage.stage.value:8} {took:>12}  {tokens} on {where}"
    yield _step_words(time)
    if time.bottleneck is not None:
        shares = ", ".join(f"{role.value} {seconds:,.2f} s" for role, seconds in time.role_s.items())
        yield f"bottleneck: {time.bottleneck.value} ({shares})"
    yield from _split_lines(plan)


def _rates_words(rates: Rates) -> str:
    words = f"stage times, rates {rates.kind.value}: {rates.name} ({rates.source})"
    if rates.kind is Kind.PUBLISHED:
        words += "\n  Published by others; nothing of this plan was measured with trd-ray on a GPU."
    if rates.scales:
        words += "\n  Scaled in proportion to parameters, which is an assumption."
    return words


def _step_words(time: StepTime) -> str:
    missing = f", without {', '.join(stage.value for stage in time.unknown)}" if time.unknown else ""
    if time.least_s >= time.most_s:
        return f"  a step   {time.most_s:>10,.2f} s{missing}: one stage after the other"
    return (
        f"  a step   {time.least_s:>10,.2f} s at least (roles overlap without a gap), "
        f"{time.most_s:,.2f} s at most{missing}"
    )


def _split_lines(plan: CostPlan) -> Iterator[str]:
    if plan.split is None:
        yield f"split of devices: none suggested: {plan.no_split}"
        return
    split = plan.split
    if split.seconds >= split.now_s:
        yield "split of devices: no better one with as many"
        return
    yield (
        f"split of devices: {' '.join(split.overrides)} would take {split.seconds:,.2f} s in place of "
        f"{split.now_s:,.2f}"
    )
    for check in plan.split_checks:
        yield f"  but {check.words()}"
