"""How a push is cut into buckets, and how these travel: as bytes, or through memory that both ends map.

Either way it is a gloo broadcast for each bucket, with the same time limits. Between machines the broadcast
carries the bytes. On one machine the sender fills its shared memory, and what is broadcast is the sign that
a bucket is full. Needs torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from trd_ray.weights import TensorSpec, WeightManifest

if TYPE_CHECKING:
    from actors.weight_transfer_group import TransferGroup

ALIGNMENT = 64
"""Bytes to which each tensor of a bucket is aligned, so that a view of any dtype is legal."""
_IN_FLIGHT = 2
"""Buckets that travel, or wait to be looked at, while the sender fills the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketEntry:
    """Where one tensor lies in a bucket."""

    spec: TensorSpec
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Consecutive tensors of a manifest that travel together."""

    entries: tuple[BucketEntry, ...]
    start: int
    """Where it lies among all bytes of the push."""
    num_bytes: int

    @property
    def end(self) -> int:
        return self.start + self.num_bytes


@lru_cache(maxsize=8)
def plan_buckets(manifest: WeightManifest, bucket_bytes: int) -> tuple[Bucket, ...]:
    """Cut a manifest into buckets of at most `bucket_bytes`; a larger tensor gets one of its own.

    Both ends call this with the same arguments, so that the cuts need not be sent.
    """
    buckets: list[Bucket] = []
    entries: list[BucketEntry] = []
    start = end = 0
    for spec in manifest.tensors:
        offset = _aligned(end)
        if entries and offset + spec.num_bytes > bucket_bytes:
            buckets.append(Bucket(entries=tuple(entries), start=start, num_bytes=end))
            entries, offset, start = [], 0, _aligned(start + end)
        entries.append(BucketEntry(spec=spec, offset=offset))
        end = offset + spec.num_bytes
    if entries:
        buckets.append(Bucket(entries=tuple(entries), start=start, num_bytes=end))
    return tuple(buckets)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def bucket_view(buffer: torch.Tensor, entry: BucketEntry) -> torch.Tensor:
    """Return the tensor of `entry` as a view of the bucket `buffer` (uint8, flat)."""
    raw = buffer[entry.offset : entry.offset + entry.spec.num_bytes]
    return raw.view(entry.spec.torch_dtype).view(entry.spec.shape)


def send_buckets(
    group: TransferGroup,
    buckets: Sequence[Bucket],
    fill: Callable[[Bucket, torch.Tensor], None],
    meet: Callable[[], None],
) -> None:
    """On rank 0: have each bucket filled, and send it while the next is filled.

    Args:
        fill: writes a bucket into the flat uint8 tensor that it is given.
        meet: waits until all receivers have begun. The first buckets are filled before, while they stop.

    Raises:
        TransferLostError: see `TransferGroup.finish`; and what `meet` raises.
    """
    total = buckets[-1].end if buckets else 0
    largest = max((bucket.num_bytes for bucket in buckets), default=0)
    shared = None if group.memory is None else group.memory.write(total)
    own = [torch.empty(largest if shared is None else 0, dtype=torch.uint8) for _ in range(_IN_FLIGHT)]

    def filled(index: int, bucket: Bucket) -> torch.Tensor:
        if shared is not None:
            fill(bucket, shared[bucket.start : bucket.end])
            return _sign()
        buffer = own[index % _IN_FLIGHT][: bucket.num_bytes]
        fill(bucket, buffer)
        return buffer

    first = [filled(index, bucket) for index, bucket in enumerate(buckets[:_IN_FLIGHT])]
    meet()
    works = [group.broadcast(buffer) for buffer in first]
    for index, bucket in enumerate(buckets[_IN_FLIGHT:], start=_IN_FLIGHT):
        group.finish(works[index - _IN_FLIGHT])
        works.append(group.broadcast(filled(index, bucket)))
    for work in works[-_IN_FLIGHT:]:
        group.finish(work)


def receive_buckets(group: TransferGroup, buckets: Sequence[Bucket]) -> Iterator[torch.Tensor]:
    """Yield each bucket (uint8, flat) when it is whole, the next one on its way meanwhile.

    It is valid until the push has ended for all. Raises: see `TransferGroup.finish`.
    """
    memory = group.memory

    def begin(bucket: Bucket) -> tuple[torch.Tensor, torch.distributed.Work]:
        # Each gets its own buffer: a loader may keep the tensors of a layer until it is whole.
        buffer = torch.empty(bucket.num_bytes, dtype=torch.uint8) if memory is None else _sign()
        return buffer, group.broadcast(buffer)

    pending = begin(buckets[0]) if buckets else None
    for index, bucket in enumerate(buckets, start=1):
        assert pending is not None
        buffer, work = pending
        group.finish(work)
        pending = begin(buckets[index]) if index < len(buckets) else None
        yield buffer if memory is None else memory.read(buckets[-1].end)[bucket.start : bucket.end]


def _sign() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.uint8)
