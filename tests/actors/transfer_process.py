"""A receiver of pushes in a process of its own, which stops or dies where a test wants it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection

import torch

from actors.weight_transfer import WeightEndpoint
from actors.weight_transfer_group import TransferGroup, TransferLostError
from actors.weight_transfer_receive import receiving
from trd_ray.weights import WeightManifest, checksum_named

_START_LIMIT_S = 60.0


class Halt(StrEnum):
    """Where a receiver is when it halts."""

    NEVER = "never"
    BETWEEN_BUCKETS = "between_buckets"
    LOADING = "loading"
    """It has all tensors, and has not said that it is done."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """One push as a receiver takes part in it."""

    manifest: WeightManifest
    policy_version: int
    bucket_bytes: int
    halt: Halt = Halt.NEVER
    signal: int = signal.SIGSTOP


def serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    group: TransferGroup | None = None
    pipe.send("ready")
    while True:
        order = pipe.recv()
        if isinstance(order, WeightEndpoint):
            group = TransferGroup(
                address=order.master_address,
                port=order.master_port,
                rank=order.rank_offset,
                world_size=order.world_size,
                timeout_s=order.timeout_s,
            )
            group.connect()
            pipe.send("joined")
        else:
            assert isinstance(order, Orders) and group is not None
            pipe.send(receive(group, order))


def receive(group: TransferGroup, orders: Orders) -> str:
    """Returns the checksum of what arrived, or the words `lost: ...`."""
    received = {}
    try:
        with receiving(
            group,
            orders.manifest,
            policy_version=orders.policy_version,
            bucket_bytes=orders.bucket_bytes,
        ) as tensors:
            for name, tensor in tensors:
                received[name] = tensor
                if orders.halt is Halt.BETWEEN_BUCKETS and len(received) == 3:
                    os.kill(os.getpid(), orders.signal)
            if orders.halt is Halt.LOADING:
                os.kill(os.getpid(), orders.signal)
    except TransferLostError as error:
        return f"lost: {error}"
    return checksum_named(received.items())


class ReceiverProcess:
    """Handle of a receiver."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=serve, args=(there,), daemon=True)
        self._process.start()

    def wait_until_ready(self) -> None:
        assert self.answer(_START_LIMIT_S) == "ready"

    def order(self, order: WeightEndpoint | Orders) -> None:
        self._pipe.send(order)

    def answer(self, limit_s: float) -> str:
        assert self._pipe.poll(limit_s), f"the receiver said nothing for {limit_s} s"
        return str(self._pipe.recv())

    def signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join(10)
