"""Each check of a machine passes on a good one and fails on one that is spoilt for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launch.doctor.finding import Finding, Outcome
from launch.doctor.machine import Gpu
from launch.doctor.machine_checks import (
    MACHINE_CHECKS,
    check_cpu,
    check_file_limit,
    check_gpus,
    check_memory,
    check_ports,
    check_run_disk,
    check_shared_memory,
    check_temporary_disk,
)
from tests.unit.doctor.machines import GIB, GOOD, no_disk, subject
from tests.unit.test_memory_plan import on_gpus
from trd_ray.config import GeneratorConfig, RayConfig, ResourceConfig, TrdConfig

LOCAL = TrdConfig()
REMOTE = replace(LOCAL, ray=RayConfig(address="10.0.0.1:6379"))
DASHBOARD = replace(LOCAL, ray=RayConfig(dashboard=True, dashboard_port=8266))
H100 = Gpu(name="H100", memory_bytes=80 * GIB)


def passed(finding: Finding) -> bool:
    assert finding.outcome is not Outcome.NOT_APPLICABLE
    assert (finding.remedy == "") == (finding.outcome is Outcome.PASSED)
    return finding.outcome is Outcome.PASSED


@pytest.mark.parametrize("config", [None, LOCAL, REMOTE, DASHBOARD])
def test_a_good_machine_fails_nothing(config: TrdConfig | None):
    findings = [check(subject(config)) for check in MACHINE_CHECKS]
    assert [f.check for f in findings if f.outcome is Outcome.FAILED] == []
    assert len({f.check for f in findings}) == len(MACHINE_CHECKS)


def test_vllm_on_a_cpu_needs_avx2():
    assert passed(check_cpu(subject()))
    old = check_cpu(subject(cpu_flags=frozenset({"sse"})))
    assert not passed(old)
    assert "no AVX2" in old.measured
    # The build for GPUs brings no such kernels, and ARM has no such flag.
    assert passed(check_cpu(subject(cpu_flags=frozenset(), packages={"vllm": "1"})))
    assert passed(check_cpu(subject(cpu_flags=frozenset(), architecture="aarch64")))


def test_as_many_gpus_as_the_placement_asks_for():
    config = on_gpus()  # one each for generator, teacher and learner
    assert passed(check_gpus(subject(config, gpus=(H100,) * 3)))
    few = check_gpus(subject(config, gpus=(H100,) * 2))
    assert not passed(few)
    assert "3 are asked for" in few.measured and "H100 80 GiB" in few.measured
    assert "none found" in check_gpus(subject(config)).measured
    elsewhere = replace(config, ray=RayConfig(address="auto"))
    assert check_gpus(subject(elsewhere)).outcome is Outcome.NOT_APPLICABLE
    assert check_gpus(subject(LOCAL)).outcome is Outcome.NOT_APPLICABLE


def test_actors_and_objects_must_fit_into_memory():
    # 3 actors of 2 GiB and an object store of 1.
    assert passed(check_memory(subject(LOCAL, memory_bytes=7 * GIB)))
    assert not passed(check_memory(subject(LOCAL, memory_bytes=7 * GIB - 1)))
    many = replace(LOCAL, generator=GeneratorConfig(num_actors=9, resources=ResourceConfig(memory_gib=2)))
    assert "22 GiB of actors" in check_memory(subject(many)).measured


def test_the_object_store_must_fit_into_shared_memory():
    small = replace(GOOD.shm, free=GIB // 4)
    finding = check_shared_memory(subject(LOCAL, shm=small))
    assert not passed(finding)
    assert "0.2 GiB free" in finding.measured and "--shm-size" in finding.remedy
    assert not passed(check_shared_memory(subject(LOCAL, shm=None)))
    assert passed(
        check_shared_memory(subject(replace(LOCAL, ray=RayConfig(object_store_gib=0.2)), shm=small))
    )


def test_open_files():
    assert passed(check_file_limit(subject(file_limits=(256, 4096))))
    assert not passed(check_file_limit(subject(file_limits=(256, 4095))))
    assert passed(check_file_limit(subject(file_limits=(256, -1))))  # no limit


def test_the_dashboard_s_port_must_be_free():
    asked = []
    assert passed(check_ports(subject(DASHBOARD, port_is_free=lambda port: not asked.append(port))))
    assert asked == [8266]
    taken = check_ports(subject(DASHBOARD, port_is_free=lambda port: False))
    assert not passed(taken)
    assert "8266 is in use" in taken.measured


def test_room_for_checkpoints():
    # 2 kept and one that is being written, of 16 bytes a parameter; and 1 GiB.
    num = 10**9
    needed = GIB + 3 * 16 * num

    def free(num_bytes: int):
        return lambda path: replace(GOOD.disk(path), free=num_bytes)

    assert passed(check_run_disk(subject(LOCAL, num_parameters=num, disk=free(needed))))
    assert not passed(check_run_disk(subject(LOCAL, num_parameters=num, disk=free(needed - 1))))
    assert passed(check_run_disk(subject(LOCAL, disk=free(GIB))))
    assert not passed(check_run_disk(subject(disk=no_disk)))


def test_room_for_ray_s_temporary_files():
    assert passed(check_temporary_disk(subject()))
    assert not passed(check_temporary_disk(subject(disk=no_disk)))
    large = replace(LOCAL, ray=RayConfig(object_store_gib=60))
    assert not passed(check_temporary_disk(subject(large)))
