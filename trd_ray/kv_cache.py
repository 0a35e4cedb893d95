"""How many tokens an engine's KV cache holds."""

from __future__ import annotations

from dataclasses import dataclass

from trd_ray.choices import DType
from trd_ray.config import EngineConfig
from trd_ray.model_files import ModelFacts

BYTES = {DType.FLOAT32: 4, DType.BFLOAT16: 2}
_KEYS_AND_VALUES = 2


@dataclass(frozen=True, kw_only=True)
class KvRoom:
    """The cache of one engine, on each of its devices."""

    bytes_per_token: int
    num_bytes: int | None
    """What there is for it; None if the device's memory is not known."""
    max_model_len: int

    @property
    def sequence_bytes(self) -> int:
        """One sequence of full length: the least that an engine starts with."""
        return self.bytes_per_token * self.max_model_len

    def words(self) -> str:
        """For people."""
        each = f"KV cache: {self.bytes_per_token / 2**10:,.1f} KiB a token and device"
        if self.num_bytes is None:
            return f"{each}; how many fit is not known without placement.device_memory_gib"
        tokens = max(0, self.num_bytes) // self.bytes_per_token
        return (
            f"{each}: room for at most {tokens:,} tokens, "
            f"{tokens / self.max_model_len:,.1f} sequences of {self.max_model_len:,}"
        )


def kv_room(engine: EngineConfig, facts: ModelFacts, *, num_bytes: int | None) -> KvRoom:
    """Keys and values of every layer, in the engine's dtype; a device of a tensor-parallel engine holds
    its share of the heads, but at least one."""
    heads = max(1, facts.num_kv_heads // engine.tensor_parallel_size)
    return KvRoom(
        bytes_per_token=_KEYS_AND_VALUES * facts.num_layers * heads * facts.head_dim * BYTES[engine.dtype],
        num_bytes=num_bytes,
        max_model_len=engine.max_model_len,
    )
