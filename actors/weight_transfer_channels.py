"""How the bytes of a push travel from the sender: one class a backend, with the same calls."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from actors.weight_transfer_buckets import Contents, Seal, plan_buckets, send_buckets
from actors.weight_transfer_group import TransferGroup, TransferLostError
from trd_ray.errors import (
    ActorTimeoutError,
    MissingDependencyError,
    TrdRayError,
    WeightSyncError,
    describe,
)
from trd_ray.weights import PushChecksum, WeightChecksum, WeightManifest, copy_canonical

logger = logging.getLogger(__name__)


class Channel(Protocol):
    """What differs between the backends on the sender's side."""

    def connect(self) -> None: ...

    def send(
        self,
        tensors: Iterator[tuple[str, torch.Tensor]],
        manifest: WeightManifest,
        policy_version: int,
        *,
        read_back: bool,
    ) -> str:
        """Send all; returns what `WeightChecksum` says of them, empty if they are not read back."""
        ...

    def close(self) -> None: ...


class GlooChannel:
    """Buckets through shared memory or by gloo, the last on its way while the next is filled."""

    def __init__(self, group: TransferGroup, names: dict[int, str], bucket_bytes: int) -> None:
        self._group = group
        self._names = names
        self._bucket_bytes = bucket_bytes

    def connect(self) -> None:
        offers = self._group.memory is not None
        try:
            self._group.connect()
        except TimeoutError as error:
            raise self._timeout("joining the transfer group", self._group.missing()) from error
        if offers and self._group.memory is None:
            apart = [self._names[rank] for rank in self._group.apart()]
            logger.warning(
                "weights travel through sockets: this process's memory is out of reach of %s; "
                "weight_sync.shared_memory=false says that this is meant",
                apart,
            )

    def send(
        self,
        tensors: Iterator[tuple[str, torch.Tensor]],
        manifest: WeightManifest,
        policy_version: int,
        *,
        read_back: bool,
    ) -> str:
        group = self._group
        push = group.begin_push()
        buckets = plan_buckets(manifest, self._bucket_bytes)
        checksum, canonical = PushChecksum(manifest), WeightChecksum()

        def meet() -> None:
            # Nobody waits in a broadcast before all are there.
            if culprits := group.await_receivers(push, done=False):
                raise self._failure(culprits, push, "beginning the push")

        def fill(contents: Contents) -> Seal:
            for piece in contents.bucket.pieces:
                for entry in piece.entries:
                    name, tensor = next(tensors)
                    view = contents.tensor(entry)
                    if read_back:
                        copy_canonical(tensor.to(view.dtype), view)
                        canonical.add_canonical(name, view)
                    else:
                        view.copy_(tensor)
                checksum.add(contents.raw[piece.start : piece.end])
            if contents.bucket is buckets[-1]:
                # The sender's check raises here if there are more tensors than the manifest says.
                next(tensors, None)
            return Seal(policy_version=policy_version, digest=checksum.digest())

        try:
            send_buckets(group, buckets, fill, meet)
        except TransferLostError as error:
            culprits = group.give_up(push)
            raise self._failure(culprits, push, f"receiving policy version {policy_version}") from error
        if late := group.await_receivers(push, done=True):
            raise self._failure(group.give_up(push) or late, push, "loading the push")
        return canonical.hexdigest() if read_back else ""

    def _failure(self, culprits: Sequence[int], push: int, what: str) -> TrdRayError:
        errors = {self._names[rank]: line for rank, line in self._group.errors(push).items()}
        if not errors:
            return self._timeout(what, culprits)
        return WeightSyncError(
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


class NcclChannel:
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
        self,
        tensors: Iterator[tuple[str, torch.Tensor]],
        manifest: WeightManifest,
        policy_version: int,
        *,
        read_back: bool,
    ) -> str:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        checksum = WeightChecksum()

        def prepared(item: tuple[str, torch.Tensor]) -> torch.Tensor:
            # Only for a read-back: the values come from the accelerator for it, which NCCL never needs.
            if read_back:
                checksum.add(*item)
            return item[1]

        def broadcast() -> None:
            device = torch.accelerator.current_accelerator()
            packed_nccl_broadcast_producer(
                iterator=(
                    (name, tensor.to(device, spec.torch_dtype))
                    for (name, tensor), spec in zip(tensors, manifest.tensors, strict=True)
                ),
                group=self._communicator,
                src=0,
                post_iter_func=prepared,
                buffer_size_bytes=self._bucket_bytes,
            )

        self._limited(broadcast, f"broadcasting policy version {policy_version}")
        return checksum.hexdigest() if read_back else ""

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
