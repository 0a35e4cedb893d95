"""How a push is cut into buckets, and how these travel: as bytes, or through memory that both ends map.

Either way it is a gloo broadcast for each bucket, with the same time limits, that ends with the bucket's
seal. Between machines the broadcast carries the bytes before it. On one machine the sender fills its shared
memory, and the seal alone says that a bucket is full. Needs torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from actors.weight_transfer_memory import SharedMemory, as_tensor
from trd_ray.weights import PushChecksum, TensorSpec, WeightManifest

if TYPE_CHECKING:
    from actors.weight_transfer_group import TransferGroup

ALIGNMENT = 64
"""Bytes to which each tensor of a bucket is aligned, so that a view of any dtype is legal."""
_PIECE_BYTES = 256 * 1024
"""Least that is hashed at once: for small tensors a call each would cost more than to hash them."""
_VERSION_BYTES = 8
SEAL_BYTES = _VERSION_BYTES + PushChecksum.SIZE
_IN_FLIGHT = 2
"""Buckets that travel, or wait to be looked at, while the sender fills the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketEntry:
    """Where one tensor lies in a bucket."""

    spec: TensorSpec
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Consecutive tensors of a bucket that are hashed together, with what lies between them."""

    entries: tuple[BucketEntry, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Consecutive tensors of a manifest that travel together."""

    pieces: tuple[Piece, ...]
    start: int
    """Where it lies among all bytes of the push."""
    num_bytes: int

    @property
    def end(self) -> int:
        return self.start + self.num_bytes


@lru_cache(maxsize=8)
def plan_buckets(manifest: WeightManifest, bucket_bytes: int) -> tuple[Bucket, ...]:
    """Cut a manifest into buckets of at most `bucket_bytes`; a larger tensor gets one of its own.

    Both ends call this with the same arguments, so that the cuts need not be sent. There is at least one.
    """
    buckets: list[Bucket] = []
    entries: list[BucketEntry] = []
    start = end = 0
    for spec in manifest.tensors:
        offset = _aligned(end)
        if entries and offset + spec.num_bytes > bucket_bytes:
            buckets.append(Bucket(pieces=_pieces(entries), start=start, num_bytes=end))
            entries, offset, start = [], 0, _aligned(start + end)
        entries.append(BucketEntry(spec=spec, offset=offset))
        end = offset + spec.num_bytes
    if entries or not buckets:
        buckets.append(Bucket(pieces=_pieces(entries), start=start, num_bytes=end))
    return tuple(buckets)


def _pieces(entries: Sequence[BucketEntry]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    first = start = 0
    for index, entry in enumerate(entries, start=1):
        end = entry.offset + entry.spec.num_bytes
        if end - start >= _PIECE_BYTES or index == len(entries):
            pieces.append(Piece(entries=tuple(entries[first:index]), start=start, end=end))
            first, start = index, end
    return tuple(pieces)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What is in a bucket, or comes into it."""

    bucket: Bucket
    raw: torch.Tensor
    """All of it (uint8, flat)."""
    memory: SharedMemory | None
    """Where it lies; None if in memory of its own."""

    def tensor(self, entry: BucketEntry) -> torch.Tensor:
        """Return one tensor as a view."""
        if self.memory is not None and entry.spec.num_bytes:
            return self.memory.view(self.bucket.start + entry.offset, entry.spec)
        return as_tensor(self.raw, entry.offset, entry.spec)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seal:
    """What ends a bucket."""

    policy_version: int
    digest: bytes
    """The `PushChecksum` of all buckets so far."""

    def to_tensor(self) -> torch.Tensor:
        """As `SEAL_BYTES` flat bytes (uint8)."""
        raw = self.policy_version.to_bytes(_VERSION_BYTES, "little") + self.digest
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8)

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Seal:
        raw = tensor.numpy().tobytes()
        version = int.from_bytes(raw[:_VERSION_BYTES], "little")
        return cls(policy_version=version, digest=raw[_VERSION_BYTES:])


def send_buckets(
    group: TransferGroup,
    buckets: Sequence[Bucket],
    fill: Callable[[Contents], Seal],
    meet: Callable[[], None],
) -> None:
    """On rank 0: have each bucket filled, and send it while the next is filled.

    Args:
        fill: writes the tensors of a bucket, and seals it.
        meet: waits until all receivers have begun. The first buckets are filled before, while they stop.

    Raises:
        TransferLostError: see `TransferGroup.finish`; and what `meet` raises.
    """
    largest = max(bucket.num_bytes for bucket in buckets) + SEAL_BYTES
    shared = None if group.memory is None else group.memory.write(buckets[-1].end)
    # Zeros: what lies between the tensors travels too.
    own = [torch.zeros(largest if shared is None else 0, dtype=torch.uint8) for _ in range(_IN_FLIGHT)]

    def filled(index: int, bucket: Bucket) -> torch.Tensor:
        if shared is not None:
            raw = shared[bucket.start : bucket.end]
            return fill(Contents(bucket=bucket, raw=raw, memory=group.memory)).to_tensor()
        message = own[index % _IN_FLIGHT][: bucket.num_bytes + SEAL_BYTES]
        contents = Contents(bucket=bucket, raw=message[: bucket.num_bytes], memory=None)
        message[bucket.num_bytes :] = fill(contents).to_tensor()
        return message

    first = [filled(index, bucket) for index, bucket in enumerate(buckets[:_IN_FLIGHT])]
    meet()
    works = [group.broadcast(buffer) for buffer in first]
    for index, bucket in enumerate(buckets[_IN_FLIGHT:], start=_IN_FLIGHT):
        group.finish(works[index - _IN_FLIGHT])
        works.append(group.broadcast(filled(index, bucket)))
    for work in works[-_IN_FLIGHT:]:
        group.finish(work)


def receive_buckets(group: TransferGroup, buckets: Sequence[Bucket]) -> Iterator[tuple[Contents, Seal]]:
    """Yield each bucket when it is whole with its seal, the next one on its way meanwhile.

    It is valid until the push has ended for all. Raises: see `TransferGroup.finish`.
    """
    memory = group.memory

    def begin(bucket: Bucket) -> tuple[torch.Tensor, torch.distributed.Work]:
        # Each gets its own buffer: a loader may keep the tensors of a layer until it is whole.
        size = SEAL_BYTES if memory is not None else bucket.num_bytes + SEAL_BYTES
        message = torch.empty(size, dtype=torch.uint8)
        return message, group.broadcast(message)

    def contents(bucket: Bucket, message: torch.Tensor) -> Contents:
        if memory is None:
            raw = message[: bucket.num_bytes]
        else:
            raw = memory.read(buckets[-1].end)[bucket.start : bucket.end]
        return Contents(bucket=bucket, raw=raw, memory=memory)

    pending: tuple[torch.Tensor, torch.distributed.Work] | None = begin(buckets[0])
    for index, bucket in enumerate(buckets, start=1):
        assert pending is not None
        message, work = pending
        group.finish(work)
        pending = begin(buckets[index]) if index < len(buckets) else None
        yield contents(bucket, message), Seal.of(message[-SEAL_BYTES:])
