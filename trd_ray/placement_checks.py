"""Which configurations can be placed, and in particular let roles take turns on shared devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trd_ray.checks import require
from trd_ray.choices import Device, PlacementMode, RefineGate
from trd_ray.types import TrajectorySource

if TYPE_CHECKING:
    from trd_ray.config import TrdConfig


def check_placement(config: TrdConfig) -> None:
    """Raise `ConfigError` if the roles cannot be placed as `placement` says."""
    for role, block in (("generator", config.generator), ("teacher", config.teacher)):
        engine = block.engine
        require(
            engine.device is Device.CPU or engine.tensor_parallel_size <= config.placement.gpus_per_node,
            f"{role}.engine.tensor_parallel_size", engine.tensor_parallel_size,
            f"at most placement.gpus_per_node ({config.placement.gpus_per_node}): one engine is on one node",
            f"lower {role}.engine.tensor_parallel_size, or raise placement.gpus_per_node if nodes are larger",
        )  # fmt: skip
    if config.placement.mode is PlacementMode.COLOCATED:
        _check_turns(config)
        _check_sharing(config)
        _check_offload(config)


def _check_turns(config: TrdConfig) -> None:
    """Stages must not overlap, and no stage may need two roles."""
    because = "because placement.mode is colocated and roles take turns by stage"
    instead = "or placement.mode=disaggregated"
    require(
        config.pipeline.max_staleness == 0,
        "pipeline.max_staleness", config.pipeline.max_staleness,
        f"0, {because}: generation cannot run while the learner learns",
        f"set pipeline.max_staleness=0 (and pipeline.stage_barrier=true), {instead}",
    )  # fmt: skip
    require(
        config.pipeline.stage_barrier,
        "pipeline.stage_barrier", config.pipeline.stage_barrier,
        f"true, {because}: a stage begins when all trajectories have ended the one before",
        f"set pipeline.stage_barrier=true, {instead}",
    )  # fmt: skip
    require(
        config.method.trajectory is not TrajectorySource.SPECULATIVE,
        "method.trajectory", config.method.trajectory.value,
        f"another source, {because}: student and teacher write a speculative trajectory together",
        f"choose another method.trajectory, {instead}",
    )  # fmt: skip
    require(
        config.method.refine_gate.kind is not RefineGate.MIN_SUPPORT,
        "method.refine_gate.kind", config.method.refine_gate.kind.value,
        f"another gate, {because}: this one asks the student about the teacher's rewrite in the teacher's "
        "stage",
        f"choose another method.refine_gate.kind, {instead}",
    )  # fmt: skip


def _check_offload(config: TrdConfig) -> None:
    """A learner that cannot leave its GPU leaves no room for the others."""
    require(
        config.learner.device is Device.CPU or config.learner.zero_stage == 2,
        "learner.zero_stage", config.learner.zero_stage,
        "2, because placement.mode is colocated and DeepSpeed offloads its states under ZeRO-2 alone "
        "(ZeRO-3: for its own fused Adam only; ZeRO-1 in bfloat16: not at all)",
        "set learner.zero_stage=2, or placement.mode=disaggregated",
    )  # fmt: skip


def _check_sharing(config: TrdConfig) -> None:
    """Every role takes all devices, and each engine a whole share of a device group."""
    devices = {"learner": config.learner.device}
    taken = {"learner.num_ranks": config.learner.num_ranks}
    sizes = {}
    for role, block, present in (
        ("generator", config.generator, True),
        ("teacher", config.teacher, config.teacher_group),
    ):
        if present:
            size = block.engine.tensor_parallel_size
            sizes[role], devices[role] = size, block.engine.device
            taken[f"{role}.num_actors x {role}.engine.tensor_parallel_size"] = block.num_actors * size
    require(
        len(set(devices.values())) == 1,
        "device", ", ".join(f"{role} {device.value}" for role, device in devices.items()),
        "one kind of device, because placement.mode is colocated",
        "make generator.engine.device, teacher.engine.device and learner.device agree",
    )  # fmt: skip
    require(
        len(set(taken.values())) == 1,
        "placement.mode", ", ".join(f"{key} = {number}" for key, number in taken.items()),
        "the same number of devices for every role, because colocated roles take turns on all of them",
        "make these products equal, or set placement.mode=disaggregated",
    )  # fmt: skip
    largest = max(sizes.values())
    require(
        all(largest % size == 0 for size in sizes.values()) and config.learner.num_ranks % largest == 0,
        "tensor_parallel_size", ", ".join(f"{role} {size}" for role, size in sizes.items()),
        f"sizes that divide the largest ({largest}), which divides learner.num_ranks "
        f"({config.learner.num_ranks}): device groups are shared whole",
        "choose equal tensor_parallel_size for generator.engine and teacher.engine",
    )  # fmt: skip
