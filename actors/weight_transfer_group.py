"""The process group that carries a push between the learner and the generators on CPUs.

Rank 0 is the learner. Bytes travel by gloo broadcasts. The store beside the group carries a line
of progress a rank, so that a push that does not end can name the rank that it waits for. Needs
torch only, so that a learner never imports vLLM.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from trd_ray.weights import TensorSpec, WeightManifest

ALIGNMENT = 64
"""Bytes to which each tensor of a bucket is aligned, so that a view of any dtype is legal."""
TRAILER_BYTES = 40
"""The policy version (8 bytes, little-endian) and the SHA-256 (32) that end a push."""
_c10d: Any = torch.distributed  # torch leaves its stores and process groups untyped
_POLL_S = 0.005
_DONE = "done"
_ERROR = "error: "


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketEntry:
    """Where one tensor lies in a bucket."""

    spec: TensorSpec
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Consecutive tensors of a manifest that travel as one buffer."""

    entries: tuple[BucketEntry, ...]
    num_bytes: int


def plan_buckets(manifest: WeightManifest, bucket_bytes: int) -> tuple[Bucket, ...]:
    """Cut a manifest into buckets of at most `bucket_bytes`; a larger tensor gets one of its own.

    Both ends call this with the same arguments, so that the cuts need not be sent.
    """
    buckets: list[Bucket] = []
    entries: list[BucketEntry] = []
    end = 0
    for spec in manifest.tensors:
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        if entries and offset + spec.num_bytes > bucket_bytes:
            buckets.append(Bucket(entries=tuple(entries), num_bytes=end))
            entries, offset = [], 0
        entries.append(BucketEntry(spec=spec, offset=offset))
        end = offset + spec.num_bytes
    if entries:
        buckets.append(Bucket(entries=tuple(entries), num_bytes=end))
    return tuple(buckets)


def bucket_view(buffer: torch.Tensor, entry: BucketEntry) -> torch.Tensor:
    """Return the tensor of `entry` as a view of the bucket `buffer` (uint8, flat)."""
    raw = buffer[entry.offset : entry.offset + entry.spec.num_bytes]
    return raw.view(entry.spec.torch_dtype).view(entry.spec.shape)


def listen_on(address: str) -> socket.socket:
    """Return a listening socket on a free port of one address; nothing else is listened on."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen(128)
    return listener


def local_address_towards(address: str, port: int) -> str:
    """Return the address of this machine from which `address` is reached. Sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))
        return str(probe.getsockname()[0])


class TransferGroup:
    """One member of the group. Rank 0 sends, the others receive."""

    def __init__(
        self,
        *,
        address: str,
        port: int,
        rank: int,
        world_size: int,
        timeout_s: float,
        listener: socket.socket | None = None,
    ) -> None:
        """Create the store (rank 0, on `listener`) or connect to it. Does not wait for others."""
        self.rank = rank
        self.world_size = world_size
        self.timeout_s = timeout_s
        self._address = address
        self._port = port
        self._num_pushes = 0
        self._gloo: Any = None
        # The store takes over the descriptor of the listener.
        descriptor = None if listener is None else listener.detach()
        self._store = _c10d.TCPStore(
            host_name=address,
            port=port,
            world_size=world_size,
            is_master=listener is not None,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=descriptor,
        )

    def connect(self) -> None:
        """Join the broadcast group; returns when every rank has joined.

        Raises:
            TimeoutError: ranks are missing after `timeout_s`; names them (rank 0 only).
        """
        self._store.set(f"joined/{self.rank}", "1")
        if self.rank == 0:
            self._await_joined()
        gloo = _c10d.ProcessGroupGloo
        options = gloo._Options()
        own_address = local_address_towards(self._address, self._port)
        # Without a host name gloo would listen on the address of the machine's own name.
        options._devices = [gloo.create_device(hostname=own_address)]
        options._timeout = timedelta(seconds=self.timeout_s)
        store = _c10d.PrefixStore("gloo", self._store)
        self._gloo = gloo(store, self.rank, self.world_size, options)

    def _await_joined(self) -> None:
        deadline = time.monotonic() + self.timeout_s
        while missing := self.missing():
            if time.monotonic() > deadline:
                raise TimeoutError(f"ranks {missing} of {self.world_size} did not join in {self.timeout_s} s")
            time.sleep(_POLL_S)

    def missing(self) -> list[int]:
        """Return the ranks that have not called `connect`."""
        return [rank for rank in range(self.world_size) if not self._store.check([f"joined/{rank}"])]

    def broadcast(self, buffer: torch.Tensor) -> torch.distributed.Work:
        """Start a broadcast of a flat uint8 tensor from rank 0; `wait()` the result.

        Raises:
            RuntimeError: not connected. `wait()` raises it for a lost peer or the time limit.
        """
        if self._gloo is None:
            raise RuntimeError("TransferGroup: broadcast before connect()")
        work: torch.distributed.Work = self._gloo.broadcast(buffer, 0, timedelta(seconds=self.timeout_s))
        return work

    def begin_push(self) -> int:
        """Count one more push; both ends count alike, so the number names its progress lines."""
        self._num_pushes += 1
        return self._num_pushes

    def report(self, push: int, progress: str) -> None:
        """Publish this rank's progress in a push."""
        self._store.set(f"push/{push}/{self.rank}", progress)

    def report_done(self, push: int) -> None:
        self.report(push, _DONE)

    def report_error(self, push: int, message: str) -> None:
        self.report(push, _ERROR + message)

    def progress(self, push: int) -> dict[int, str]:
        """Return the last line of progress of each receiver; `absent` if there is none."""
        lines = {}
        for rank in range(1, self.world_size):
            key = f"push/{push}/{rank}"
            lines[rank] = self._store.get(key).decode() if self._store.check([key]) else "absent"
        return lines

    def failed(self, push: int) -> list[int]:
        """Return the receivers that reported an error in a push."""
        return [rank for rank, line in self.progress(push).items() if line.startswith(_ERROR)]

    def slowest(self, push: int) -> list[int]:
        """Return the receivers that are furthest behind in a push."""
        lines = self.progress(push)
        count = {rank: int(line) if line.isdigit() else -1 for rank, line in lines.items() if line != _DONE}
        return [rank for rank, number in count.items() if number == min(count.values())]

    def await_receivers(self, push: int, *, done: bool) -> Sequence[int]:
        """Wait until each receiver has begun (or finished) a push. Returns the ranks that did not.

        A receiver that reports an error ends the wait at once.
        """
        deadline = time.monotonic() + self.timeout_s
        while True:
            lines = self.progress(push)
            failed = [rank for rank, line in lines.items() if line.startswith(_ERROR)]
            late = [rank for rank, line in lines.items() if (line != _DONE if done else line == "absent")]
            if failed or not late or time.monotonic() > deadline:
                return failed or late
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Drop the connections. The store goes with rank 0."""
        if self._gloo is not None:
            self._gloo.shutdown()
            self._gloo = None
