"""Whether what the memory plan adds up fits, by how much, and what to change if it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trd_ray.choices import Device, DType
from trd_ray.config import EngineConfig, ResourceConfig, TrdConfig
from trd_ray.memory_plan import ENGINE_WEIGHTS, SCORER_WEIGHTS, RoleMemory
from trd_ray.roles import Role

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryCheck:
    """One comparison, in bytes."""

    role: Role
    what: str
    """That is held, and where."""
    needed: int
    available: int
    remedy: str

    @property
    def fits(self) -> bool:
        return self.needed <= self.available

    def words(self) -> str:
        """For people, in GiB."""
        left = (self.available - self.needed) / _GIB
        amounts = f"{self.needed / _GIB:,.1f} of {self.available / _GIB:,.1f} GiB"
        if self.fits:
            return f"{self.role.value}: {self.what}: fits, {amounts}, {left:,.1f} GiB left"
        return (
            f"{self.role.value}: {self.what}: does not fit, {amounts}, {-left:,.1f} GiB too much. "
            f"To change: {self.remedy}"
        )


def memory_checks(config: TrdConfig, roles: Sequence[RoleMemory]) -> tuple[MemoryCheck, ...]:
    """Every comparison that can be made; none on GPUs of unknown memory."""
    return tuple(check for role in roles for check in _role_checks(config, role, roles))


def _role_checks(config: TrdConfig, role: RoleMemory, roles: Sequence[RoleMemory]) -> Iterator[MemoryCheck]:
    device, engine, resources = _blocks(config, role.role)
    host_bytes = int(resources.memory_gib * _GIB)
    on_gpus = device is Device.CUDA
    device_bytes = int(config.placement.device_memory_gib * _GIB) if on_gpus else host_bytes
    if not device_bytes:
        return
    if engine is not None and role.kv is not None and role.kv.num_bytes is not None:
        # An engine that cannot hold one sequence of full length does not start.
        weights = role.parts[ENGINE_WEIGHTS] if on_gpus else 0
        share = role.engine_share if role.engine_share is not None else role.kv.num_bytes
        yield MemoryCheck(
            role=role.role,
            what="weights and one full-length sequence in the engine's share"
            if on_gpus
            else "one full-length sequence in the KV cache",
            needed=weights + role.kv.sequence_bytes,
            available=share,
            remedy=_engine_remedy(role.role, on_gpus=on_gpus),
        )
    asleep = sum(other.asleep for other in roles if other is not role) if config.colocated and on_gpus else 0
    yield MemoryCheck(
        role=role.role,
        what=("all of it on a GPU" if on_gpus else "all of it in resources.memory_gib")
        + (" beside what sleeping roles keep" if asleep else ""),
        needed=role.total + asleep,
        available=device_bytes,
        remedy=_remedy(config, role, on_gpus=on_gpus),
    )
    if config.colocated and on_gpus:
        # The actor's node holds the shares of all devices of a tensor-parallel engine.
        others = engine.tensor_parallel_size - 1 if engine is not None else 0
        yield MemoryCheck(
            role=role.role,
            what="asleep in host memory (resources.memory_gib)",
            needed=role.offloaded + others * role.parts.get(ENGINE_WEIGHTS, 0),
            available=host_bytes,
            remedy=f"raise {role.role.value}.resources.memory_gib",
        )


def _blocks(config: TrdConfig, role: Role) -> tuple[Device, EngineConfig | None, ResourceConfig]:
    if role is Role.LEARNER:
        return config.learner.device, None, config.learner.resources
    block = config.generator if role is Role.GENERATOR else config.teacher
    return block.engine.device, block.engine, block.resources


def _engine_remedy(role: Role, *, on_gpus: bool) -> str:
    engine = f"{role.value}.engine"
    if not on_gpus:
        return (
            f"raise {engine}.kv_cache_gib (and {role.value}.resources.memory_gib), or lower "
            f"{engine}.max_model_len"
        )
    return (
        f"raise {engine}.gpu_memory_utilization or {engine}.tensor_parallel_size, or lower "
        f"{engine}.max_model_len"
    )


def _remedy(config: TrdConfig, role: RoleMemory, *, on_gpus: bool) -> str:
    if role.role is Role.LEARNER:
        return _learner_remedy(config)
    name, changes = role.role.value, []
    if SCORER_WEIGHTS in role.parts:
        if config.teacher.score_dtype is DType.FLOAT32:
            changes.append("teacher.score_dtype=bfloat16")
        changes.append("a lower teacher.score_batch_tokens")
        changes.append("teacher.score=prefill with method.support=top_k, which needs no scorer")
    if on_gpus and ENGINE_WEIGHTS in role.parts:
        changes.append(f"a higher {name}.engine.tensor_parallel_size")
        changes.append(f"a lower {name}.engine.gpu_memory_utilization if the engine's share has room")
    if not on_gpus:
        changes.append(f"a higher {name}.resources.memory_gib or a lower {name}.engine.kv_cache_gib")
    return "; ".join(changes)


def _learner_remedy(config: TrdConfig) -> str:
    learner = config.learner
    changes = []
    if learner.zero_stage < 3:
        changes.append(f"learner.zero_stage={3 if learner.num_ranks > 1 else '3 with more ranks'}")
    changes.append("more learner.num_ranks")
    if not learner.lora.rank:
        changes.append("learner.lora.rank=64")
    if not learner.activation_checkpointing:
        changes.append("learner.activation_checkpointing=true")
    changes.append("a lower learner.micro_batch_tokens or learner.kl_chunk_size")
    if learner.device is Device.CPU:
        changes.append("a higher learner.resources.memory_gib")
    return "; ".join(changes)
