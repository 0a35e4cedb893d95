"""Pushing weights from the learner into generators through vLLM's weight-transfer interface.

The sender side. Two backends share each call: `cpu`, registered here, carries buckets by gloo;
`nccl` is vLLM's own. A push runs as two calls at the same time, since both ends meet in the same
broadcasts: `WeightSender.send(...)` on learner rank 0 and `Engine.update_weights(...)` on each
generator.

    endpoints = sender.listen(receivers)            # learner: a free port, known to the store
    sender.open()  ||  engine.init_weight_transfer(endpoint)      once, and after each failure
    sender.send()  ||  engine.update_weights()                    each push

This module imports neither vLLM nor Ray at its top, so that a learner on CPUs never loads vLLM.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from actors.weight_transfer_group import TRAILER_BYTES, TransferGroup, bucket_view, listen_on, plan_buckets
from trd_ray.errors import ActorTimeoutError, MissingDependencyError, WeightSyncError, describe
from trd_ray.types import SyncReport
from trd_ray.weights import TensorSpec, WeightChecksum, WeightManifest

logger = logging.getLogger(__name__)

CPU_BACKEND = "cpu"
NCCL_BACKEND = "nccl"
DEFAULT_BUCKET_BYTES = 64 * 1024 * 1024
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


class _Channel(Protocol):
    """What differs between the backends on the sender's side."""

    def connect(self) -> None: ...

    def send(
        self, tensors: Iterator[tuple[str, torch.Tensor]], manifest: WeightManifest, policy_version: int
    ) -> WeightChecksum: ...

    def close(self) -> None: ...


class WeightSender:
    """The sender of a group of generators; lives in learner rank 0. Not thread-safe."""

    def __init__(
        self,
        *,
        backend: str = CPU_BACKEND,
        address: str = "127.0.0.1",
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        timeout_s: float = 300.0,
    ) -> None:
        """
        Args:
            address: this machine's address towards the generators. The default reaches those on
                the same machine only.
            bucket_bytes: tensors travel in buckets of this size; two are held at a time.
            timeout_s: limit of each wait for the receivers.
        """
        if backend not in (CPU_BACKEND, NCCL_BACKEND):
            raise ValueError(f"WeightSender: backend is {backend!r}; expected {CPU_BACKEND!r} or {NCCL_BACKEND!r}")
        self._backend = backend
        self._address = address
        self._bucket_bytes = bucket_bytes
        self._timeout_s = timeout_s
        self._channel: _Channel | None = None
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
        names = {rank: r.name for r, first in zip(receivers, offsets, strict=True)
                 for rank in range(first, first + r.num_workers)}  # fmt: skip
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
            )
            self._channel = _GlooChannel(group, names, self._bucket_bytes)
        else:
            self._channel = _NcclChannel(
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
        self, tensors: Iterable[tuple[str, torch.Tensor]], manifest: WeightManifest, policy_version: int
    ) -> SyncReport:
        """Send each tensor once, in the order of the manifest; returns when all have loaded them.

        Run `Engine.update_weights(manifest, policy_version)` of each receiver at the same time.
        A tensor of another dtype than its manifest entry is cast. At most two buckets are held.

        Args:
            tensors: (name, tensor) pairs, taken one by one.

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
            checksum = self._channel.send(checked(tensors, manifest), manifest, policy_version)
            finished = True
        finally:
            # After a push that broke off the ends disagree about what comes next.
            if not finished:
                self.close()
        return SyncReport(
            policy_version=policy_version,
            num_parameters=manifest.num_parameters,
            num_bytes=manifest.num_bytes,
            checksum=checksum.hexdigest(),
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
    """Yield the tensors in the dtypes of the manifest, each compared with its entry.

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
        yield name, tensor.detach().to(spec.torch_dtype)
    if index != len(manifest.tensors):
        raise mismatch(index + 1, "the end", manifest.tensors[index])


class _GlooChannel:
    """Buckets by gloo broadcast, the last bucket on its way while the next is filled."""

    def __init__(self, group: TransferGroup, names: dict[int, str], bucket_bytes: int) -> None:
        self._group = group
        self._names = names
        self._bucket_bytes = bucket_bytes

    def connect(self) -> None:
        try:
            self._group.connect()
        except TimeoutError as error:
            raise self._timeout("joining the transfer group", self._group.missing()) from error

    def send(
        self, tensors: Iterator[tuple[str, torch.Tensor]], manifest: WeightManifest, policy_version: int
    ) -> WeightChecksum:
        group = self._group
        push = group.begin_push()
        # Nobody waits in a broadcast before all are there: a missing generator costs no bucket.
        self._require(group.await_receivers(push, done=False), push, "beginning the push")
        checksum = WeightChecksum()
        try:
            self._broadcast_buckets(tensors, manifest, checksum)
            trailer = policy_version.to_bytes(TRAILER_BYTES - 32, "little") + checksum.digest()
            group.broadcast(torch.frombuffer(bytearray(trailer), dtype=torch.uint8)).wait()
        except RuntimeError as error:
            # gloo says that a wait ended, not whose fault it is; the progress lines do.
            raise self._timeout(f"receiving policy version {policy_version}", group.slowest(push)) from error
        self._require(group.await_receivers(push, done=True), push, "loading the push")
        return checksum

    def _broadcast_buckets(
        self, tensors: Iterator[tuple[str, torch.Tensor]], manifest: WeightManifest, checksum: WeightChecksum
    ) -> None:
        buckets = plan_buckets(manifest, self._bucket_bytes)
        largest = max((bucket.num_bytes for bucket in buckets), default=0)
        buffers = [torch.zeros(largest, dtype=torch.uint8) for _ in range(2)]
        works: list[torch.distributed.Work | None] = [None, None]
        for index, bucket in enumerate(buckets):
            work = works[index % 2]
            if work is not None:
                work.wait()
            buffer = buffers[index % 2][: bucket.num_bytes]
            for entry in bucket.entries:
                name, tensor = next(tensors)
                view = bucket_view(buffer, entry)
                view.copy_(tensor)
                checksum.add(name, view)
            works[index % 2] = self._group.broadcast(buffer)
        for work in works:
            if work is not None:
                work.wait()
        # `checked` raises here if there are more tensors than the manifest says.
        next(tensors, None)

    def _require(self, culprits: Sequence[int], push: int, what: str) -> None:
        if not culprits:
            return
        lines = self._group.progress(push)
        errors = {self._names[rank]: lines[rank] for rank in culprits if lines[rank].startswith("error: ")}
        if not errors:
            raise self._timeout(what, culprits)
        raise WeightSyncError(
            describe(
                "A generator refused a push of weights",
                where=what,
                got=errors,
                expected="each generator loads the tensors that were sent",
                remedy="see the generator's log; it serves nothing until a push succeeds",
            )
        )

    def _timeout(self, what: str, culprits: Sequence[int]) -> ActorTimeoutError:
        return ActorTimeoutError(
            describe(
                "A push of weights waited too long",
                where=what,
                got=f"no answer from {[self._names[rank] for rank in culprits]}",
                expected=f"an answer within {self._group.timeout_s} s",
                remedy="see whether the generator is alive; open the group again without it or with its "
                "replacement",
            )
        )

    def close(self) -> None:
        self._group.close()


class _NcclChannel:
    """vLLM's own packed NCCL broadcast. NCCL calls cannot be cut short, so they run in a thread."""

    def __init__(
        self,
        address: str,
        port: int,
        world_size: int,
        listener: socket.socket,
        bucket_bytes: int,
        timeout_s: float,
    ) -> None:
        self._address = address
        self._port = port
        self._world_size = world_size
        self._listener = listener
        self._bucket_bytes = bucket_bytes
        self._timeout_s = timeout_s
        self._communicator: object | None = None

    def connect(self) -> None:
        try:
            from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group
        except ImportError as error:
            raise MissingDependencyError(
                describe(
                    "vLLM is not installed beside the learner",
                    where="weight transfer, backend nccl",
                    got="no package vllm",
                    expected="vllm in the learner's environment: the sender is vLLM's",
                    remedy="install vllm, or use the cpu backend",
                )
            ) from error
        # vLLM binds the port itself; it was taken only to find a free one.
        self._listener.close()

        def join() -> None:
            self._communicator = stateless_init_process_group(
                self._address, self._port, 0, self._world_size, torch.accelerator.current_device_index()
            )

        self._limited(join, "joining the transfer group")

    def send(
        self, tensors: Iterator[tuple[str, torch.Tensor]], manifest: WeightManifest, policy_version: int
    ) -> WeightChecksum:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        checksum = WeightChecksum()

        def prepared(item: tuple[str, torch.Tensor]) -> torch.Tensor:
            tensor = item[1].to(torch.accelerator.current_accelerator())
            checksum.add(item[0], tensor)
            return tensor

        def broadcast() -> None:
            packed_nccl_broadcast_producer(
                iterator=tensors,
                group=self._communicator,
                src=0,
                post_iter_func=prepared,
                buffer_size_bytes=self._bucket_bytes,
            )

        self._limited(broadcast, f"broadcasting policy version {policy_version}")
        return checksum

    def _limited(self, call: Callable[[], None], what: str) -> None:
        """Run `call` in a thread and wait for it within the limit; its error is raised here."""
        outcome: list[BaseException] = []

        def run() -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
                outcome.append(error)

        thread = threading.Thread(target=run, name="weight-transfer-nccl", daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        if thread.is_alive():
            raise ActorTimeoutError(
                describe(
                    "A push of weights waited too long",
                    where=what,
                    got="NCCL did not return",
                    expected=f"an answer within {self._timeout_s} s",
                    remedy="see which generator's log ends before its weight update; restart the learner",
                )
            )
        if outcome:
            raise outcome[0]

    def close(self) -> None:
        self._listener.close()
        destroy = getattr(self._communicator, "destroy", None)
        if destroy is not None:
            destroy()
        self._communicator = None
