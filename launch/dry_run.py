"""`--dry-run`: what a run would be. Checks everything that can be checked, starts nothing."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from actors.placement import actor_requests
from launch.consoles import console, show
from launch.preflight import check_run
from trd_ray.config import TrdConfig
from trd_ray.config_loader import dump_config
from trd_ray.memory_plan import memory_plan
from trd_ray.run_folder import RunFolder

_MIB = 2**20


def show_plan(config: TrdConfig, *, no_ray: bool) -> None:
    """Print the resolved configuration, the method, the placement and the memory plan.

    Raises what `check_run` raises.
    """
    inputs = check_run(config, no_ray=no_ray)
    RunFolder(config.run.dir).require_free()
    show(dump_config(config))
    show(f"method: {config.method.sentence()}\n")
    if no_ray:
        show("placement: one process, no Ray")
        return
    console.print(_placement_table(config))
    console.print(_memory_table(config, student=inputs.student_path, teacher=inputs.teacher_path))


def _placement_table(config: TrdConfig) -> Table:
    table = Table("actor", "cores", "GPUs", "memory GiB", title="placement")
    for request in actor_requests(config):
        asked = request.resources
        table.add_row(request.name, f"{asked.cpus:g}", f"{asked.gpus:g}", f"{asked.memory_gib:g}")
    return table


def _memory_table(config: TrdConfig, *, student: Path, teacher: Path) -> Table:
    table = Table("role", "actors", "part", "MiB each", title="memory without activations and libraries")
    for role in memory_plan(config, student=student, teacher=teacher):
        for i, (part, num_bytes) in enumerate(role.parts.items()):
            first = (role.role, str(role.num_actors)) if i == 0 else ("", "")
            table.add_row(*first, part, f"{num_bytes / _MIB:,.1f}")
        table.add_row("", "", "total", f"{role.total / _MIB:,.1f}", end_section=True)
    return table
