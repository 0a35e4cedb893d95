"""Pushing weights from the learner into generators through vLLM's weight-transfer interface.

The sender side. Two backends share each call: `cpu`, registered here, carries buckets through shared memory
or by gloo; `nccl` is vLLM's own. A push runs as two calls at the same time, since both ends meet in the same
broadcasts: `WeightSender.send(...)` on learner rank 0 and `Engine.update_weights(...)` on each generator.

    endpoints = sender.listen(receivers)            # learner: a free port, known to the store
    sender.open()  ||  engine.init_weight_transfer(endpoint)      once, and after each failure
    sender.send()  ||  engine.update_weights()                    each push

This module imports neither vLLM nor Ray at its top, so that a learner on CPUs never loads vLLM.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from actors.weight_transfer_channels import Channel, GlooChannel, NcclChannel
from actors.weight_transfer_group import TransferGroup, listen_on
from trd_ray.errors import WeightSyncError, describe
from trd_ray.types import SyncReport
from trd_ray.weights import TensorSpec, WeightManifest

logger = logging.getLogger(__name__)

CPU_BACKEND = "cpu"
NCCL_BACKEND = "nccl"
DEFAULT_BUCKET_BYTES = 8 * 1024 * 1024
_registered = threading.Event()


def register() -> None:
    """Register the `cpu` backend with vLLM in this process; safe to call again.

    It is the target of the `vllm.general_plugins` entry point, and is called by the import of
    `actors.weight_transfer_worker`, so that it also works where this package is not installed.
    """
    if _registered.is_set():
        return
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine(
        CPU_BACKEND, "actors.weight_transfer_worker", "CpuWeightTransferEngine"
    )
    _registered.set()


@dataclass(frozen=True, kw_only=True, slots=True)
class Receiver:
    """One generator that a push goes to."""

    name: str
    """Named in the error if it is the one that a push waits for."""
    num_workers: int = 1
    """vLLM workers of its engine: tensor-parallel size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightEndpoint:
    """Where one receiver meets the sender. Plain values, made by `WeightSender.listen`."""

    backend: str
    master_address: str
    master_port: int
    world_size: int
    """Workers of all receivers, and the sender."""
    rank_offset: int
    """Rank of this receiver's first worker."""
    bucket_bytes: int
    timeout_s: float
    """Limit of each wait of a worker for the sender or its peers."""


class WeightSender:
    """The sender of a group of generators; lives in learner rank 0. Not thread-safe."""

    def __init__(
        self,
        *,
        backend: str = CPU_BACKEND,
        address: str = "127.0.0.1",
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        timeout_s: float = 300.0,
        shared_memory: bool = True,
    ) -> None:
        """
        Args:
            address: this machine's address towards the generators. The default reaches those on
                the same machine only.
            bucket_bytes: tensors travel in buckets of this size.
            timeout_s: limit of each wait for the receivers.
            shared_memory: for `cpu`: use memory that all receivers map, if all are on this machine. It holds
                a whole push as long as the group is open; without it two buckets are held during one.
        """
        if backend not in (CPU_BACKEND, NCCL_BACKEND):
            raise ValueError(f"WeightSender: backend is {backend!r}; expected 'cpu' or 'nccl'")
        self._backend = backend
        self._address = address
        self._bucket_bytes = bucket_bytes
        self._timeout_s = timeout_s
        self._shared_memory = shared_memory
        self._channel: Channel | None = None
        self._is_open = False

    def listen(self, receivers: Sequence[Receiver]) -> tuple[WeightEndpoint, ...]:
        """Take a free port and say where each receiver connects. Ends an earlier group.

        Does not wait for anyone. Returns one endpoint a receiver, in order.
        """
        self.close()
        offsets, world_size = [], 1
        for receiver in receivers:
            offsets.append(world_size)
            world_size += receiver.num_workers
        names = {
            rank: receiver.name
            for receiver, first in zip(receivers, offsets, strict=True)
            for rank in range(first, first + receiver.num_workers)
        }
        listener = listen_on(self._address)
        port = int(listener.getsockname()[1])
        if self._backend == CPU_BACKEND:
            group = TransferGroup(
                address=self._address,
                port=port,
                rank=0,
                world_size=world_size,
                timeout_s=self._timeout_s,
                listener=listener,
                shared_memory=self._shared_memory,
            )
            self._channel = GlooChannel(group, names, self._bucket_bytes)
        else:
            self._channel = NcclChannel(
                self._address, port, world_size, listener, self._bucket_bytes, self._timeout_s
            )
        return tuple(
            WeightEndpoint(
                backend=self._backend,
                master_address=self._address,
                master_port=port,
                world_size=world_size,
                rank_offset=offset,
                bucket_bytes=self._bucket_bytes,
                timeout_s=self._timeout_s,
            )
            for offset in offsets
        )

    def open(self) -> None:
        """Connect to all receivers; run `Engine.init_weight_transfer` of each at the same time.

        Raises:
            ActorTimeoutError: a receiver did not join in time; names it.
            WeightSyncError: `listen` was not called before.
        """
        if self._channel is None:
            raise WeightSyncError(
                describe(
                    "The weight sender has no group",
                    where="WeightSender.open",
                    got="no call of listen()",
                    expected="listen(receivers) before open()",
                    remedy="call listen() and give each receiver its endpoint",
                )
            )
        self._channel.connect()
        self._is_open = True

    def send(
        self,
        tensors: Iterable[tuple[str, torch.Tensor]],
        manifest: WeightManifest,
        policy_version: int,
        *,
        read_back: bool = True,
    ) -> SyncReport:
        """Send each tensor once, in the order of the manifest; returns when all have loaded them.

        Run `Engine.update_weights(manifest, policy_version)` of each receiver at the same time.
        A tensor of another dtype than its manifest entry is cast.

        Args:
            tensors: (name, tensor) pairs, taken one by one.
            read_back: the report holds a checksum, to be compared with `Engine.weight_checksum`. With `cpu`,
                zeros and subnormal numbers then travel as +0.0 (see `copy_canonical`); else all values
                travel as they are, which is faster.

        Raises:
            ActorTimeoutError: a receiver did not begin or finish in time; names it.
            WeightSyncError: the tensors differ from the manifest, a receiver failed, or the sender
                is not open. The group is closed then: `listen` and `open` make another.
        """
        if self._channel is None or not self._is_open:
            raise WeightSyncError(
                describe(
                    "The weight sender is not connected",
                    where=f"WeightSender.send, policy version {policy_version}",
                    got="no open group",
                    expected="listen() and open() before send()",
                    remedy="open a group; after a failed push open another",
                )
            )
        start = time.perf_counter()
        finished = False
        try:
            checksum = self._channel.send(
                checked(tensors, manifest), manifest, policy_version, read_back=read_back
            )
            finished = True
        finally:
            # After a push that broke off the ends disagree about what comes next.
            if not finished:
                self.close()
        return SyncReport(
            policy_version=policy_version,
            num_parameters=manifest.num_parameters,
            num_bytes=manifest.num_bytes,
            checksum=checksum,
            sync_s=time.perf_counter() - start,
        )

    def close(self) -> None:
        """Drop the group; safe to call again."""
        self._is_open = False
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def checked(
    tensors: Iterable[tuple[str, torch.Tensor]], manifest: WeightManifest
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors, each compared with its entry of the manifest.

    Raises:
        WeightSyncError: another name or shape than the manifest says, or too few or too many.
    """

    def mismatch(index: int, got: object, expected: object) -> WeightSyncError:
        return WeightSyncError(
            describe(
                "The tensors differ from their manifest",
                where=f"tensor {index} of {len(manifest.tensors)}",
                got=got,
                expected=str(expected),
                remedy="build the manifest from the same named tensors, in the same order",
            )
        )

    index = 0
    for index, (name, tensor) in enumerate(tensors, start=1):
        if index > len(manifest.tensors):
            raise mismatch(index, name, "no more tensors")
        spec: TensorSpec = manifest.tensors[index - 1]
        if (name, tuple(tensor.shape)) != (spec.name, spec.shape):
            raise mismatch(index, (name, tuple(tensor.shape)), (spec.name, spec.shape))
        yield name, tensor.detach()
    if index != len(manifest.tensors):
        raise mismatch(index + 1, "the end", manifest.tensors[index])
