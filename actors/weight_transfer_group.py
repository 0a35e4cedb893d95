"""The process group that carries a push between the learner and the generators on CPUs.

Rank 0 is the learner. What travels, travels by gloo broadcasts, which ranks hand on to each other, so a
rank that stops also stops ranks behind it. The store beside the group therefore carries a line of
progress a rank, and whether rank 0 has given a push up: then each rank that is alive says so, and
the one that is silent is the culprit. Needs torch only, so that a learner never imports vLLM.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from actors.weight_transfer_memory import SharedMemory

_c10d: Any = torch.distributed  # torch leaves its stores and process groups untyped
_MIN_POLL_S, _MAX_POLL_S, _POLL_SHARE = 0.0001, 0.02, 0.05
"""A wait looks again after this share of the time it has taken: it adds 5% at most, and asks seldom."""
_SLICE = timedelta(seconds=0.2)
"""A rank in a broadcast looks as often whether the push was given up."""
_MAX_GRACE_S = 5.0
"""Time in which a receiver that is alive says so after a push was given up; it may be loading a bucket."""
_DONE = "done"
_ERROR = "error: "
_LOST = "lost: "
_MEMORY, _CARRIER = "memory", "carrier"
_SHARES, _APART = "shares", "apart"


class TransferLostError(RuntimeError):
    """A broadcast ended without its bytes: a peer is gone or late, or the push was given up."""


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


def _errors_in(lines: dict[int, str]) -> dict[int, str]:
    return {rank: line.removeprefix(_ERROR) for rank, line in lines.items() if line.startswith(_ERROR)}


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
        shared_memory: bool = True,
    ) -> None:
        """Create the store (rank 0, on `listener`) or connect to it. Does not wait for others.

        Args:
            shared_memory: for rank 0: offer it; it is used if all receivers can map it.
        """
        self.rank = rank
        self.world_size = world_size
        self.timeout_s = timeout_s
        self._address = address
        self._port = port
        self._num_pushes = 0
        self._began = 0.0
        self._gloo: Any = None
        self.memory: SharedMemory | None = None
        """Carries the buckets, if all are found to share it; None if gloo does."""
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
        if rank == 0:
            self.memory = SharedMemory.create() if shared_memory else None
            self._store.set(_MEMORY, self.memory.ticket if self.memory else "")

    def connect(self) -> None:
        """Join the broadcast group; returns when every rank has joined.

        Raises:
            TimeoutError: ranks are missing after `timeout_s`; `missing` names them.
        """
        if self.rank == 0:
            joined = [f"joined/{rank}" for rank in range(1, self.world_size)]
            if not self._await(lambda: bool(self._store.check(joined))):
                raise TimeoutError(f"ranks {self.missing()} did not join in {self.timeout_s} s")
        else:
            ticket = self._store.get(_MEMORY).decode()
            self.memory = SharedMemory.find(ticket) if ticket else None
            self._store.set(f"joined/{self.rank}", _APART if self.memory is None else _SHARES)
        gloo = _c10d.ProcessGroupGloo
        options = gloo._Options()
        own_address = local_address_towards(self._address, self._port)
        # Without a host name gloo would listen on the address of the machine's own name.
        options._devices = [gloo.create_device(hostname=own_address)]
        options._timeout = timedelta(seconds=self.timeout_s)
        store = _c10d.PrefixStore("gloo", self._store)
        try:
            self._gloo = gloo(store, self.rank, self.world_size, options)
        except RuntimeError as error:
            raise TimeoutError(f"rank {self.rank} did not connect: timed out, {error}") from error
        self._store.set(f"connected/{self.rank}", "1")
        self._agree_on_memory()

    def _agree_on_memory(self) -> None:
        """All use it or none: a receiver elsewhere needs the bytes, and hands them on."""
        if self.rank == 0:
            self._store.set(_CARRIER, _APART if self.memory is None or self.apart() else _SHARES)
        if self._store.get(_CARRIER).decode() == _APART:
            self._drop_memory()

    def apart(self) -> list[int]:
        """Return the receivers that joined and cannot map rank 0's memory."""
        ranks = range(1, self.world_size)
        return [rank for rank in ranks if self._store.get(f"joined/{rank}").decode() == _APART]

    def _drop_memory(self) -> None:
        memory, self.memory = self.memory, None
        if memory is not None:
            memory.close()

    def _await(
        self, condition: Callable[[], bool], limit_s: float | None = None, stop: str | None = None
    ) -> bool:
        """Ask again and again until the condition holds; False after the limit, or if `stop` is set."""
        start = time.monotonic()
        while not condition():
            elapsed_s = time.monotonic() - start
            if elapsed_s > (self.timeout_s if limit_s is None else limit_s):
                return False
            if stop is not None and self._store.check([stop]):
                return False
            time.sleep(min(_MAX_POLL_S, max(_MIN_POLL_S, _POLL_SHARE * elapsed_s)))
        return True

    def missing(self) -> list[int]:
        """Return the receivers that have not called `connect`; if all have, those it failed for."""
        for key in ("joined", "connected"):
            ranks = [rank for rank in range(1, self.world_size) if not self._store.check([f"{key}/{rank}"])]
            if ranks:
                return ranks
        return []

    def broadcast(self, buffer: torch.Tensor) -> torch.distributed.Work:
        """Start a broadcast of a flat uint8 tensor from rank 0; `finish` the result.

        Raises:
            RuntimeError: not connected.
        """
        if self._gloo is None:
            raise RuntimeError("TransferGroup: broadcast before connect()")
        work: torch.distributed.Work = self._gloo.broadcast(buffer, 0, timedelta(seconds=self.timeout_s))
        return work

    def finish(self, work: torch.distributed.Work) -> None:
        """Wait for a broadcast of the current push.

        Raises:
            TransferLostError: a peer is gone, the time limit has passed, or the push has failed elsewhere:
                a receiver reported an error (seen by rank 0), or rank 0 gave up (seen by the others).
        """
        stop = f"failed/{self._num_pushes}" if self.rank == 0 else f"given_up/{self._num_pushes}"
        while True:
            try:
                work.wait(_SLICE)
                return
            except RuntimeError as error:
                # A slice that ended is no failure of the broadcast, which goes on or is complete by now.
                if work.is_completed():
                    if work.exception() is None:
                        return
                    raise TransferLostError(str(error)) from error
            try:
                if self._store.check([stop]):
                    raise TransferLostError("another member of the group ended the push")
            except _c10d.DistError as error:
                raise TransferLostError(f"the sender is gone: {error}") from error

    def begin_push(self) -> int:
        """Count one more push; both ends count alike, so the number names its progress lines."""
        self._num_pushes += 1
        self._began = time.monotonic()
        return self._num_pushes

    def report(self, push: int, progress: str) -> None:
        """Publish this rank's progress in a push."""
        self._store.set(f"push/{push}/{self.rank}", progress)

    def report_done(self, push: int) -> None:
        self._report_end(push, _DONE)

    def report_error(self, push: int, message: str) -> None:
        """Publish that this rank cannot load the push, which ends it for all."""
        self._report_end(push, _ERROR + message, failed=True)

    def report_lost(self, push: int, message: str) -> None:
        """Publish that the bytes did not come; the fault is elsewhere."""
        self._report_end(push, _LOST + message, failed=True)

    def _report_end(self, push: int, line: str, *, failed: bool = False) -> None:
        # One becomes visible after the other: who sees a failure can read why, and who sees that all have
        # ended does not take it for success.
        lines = {f"push/{push}/{self.rank}": line}
        if failed:
            lines[f"failed/{push}"] = "1"
        lines[f"ended/{push}/{self.rank}"] = "1"
        self._store.multi_set(list(lines), list(lines.values()))

    def progress(self, push: int) -> dict[int, str]:
        """Return the last line of progress of each receiver; `absent` if there is none."""
        lines = {}
        for rank in range(1, self.world_size):
            key = f"push/{push}/{rank}"
            lines[rank] = self._store.get(key).decode() if self._store.check([key]) else "absent"
        return lines

    def errors(self, push: int) -> dict[int, str]:
        """Return why receivers could not load a push, of those that said so."""
        return _errors_in(self.progress(push))

    def give_up(self, push: int) -> list[int]:
        """End a push that cannot go on, for all. Returns the receivers at fault, as far as it shows.

        Those that reported an error; else those that do not answer any more; else those that were
        furthest behind. None if all were done.
        """
        before = self.progress(push)
        self._store.set(f"given_up/{push}", "1")
        ended = [f"ended/{push}/{rank}" for rank in range(1, self.world_size)]
        self._await(lambda: bool(self._store.check(ended)), min(_MAX_GRACE_S, self.timeout_s / 4))
        after = self.progress(push)
        if errors := _errors_in(after):
            return list(errors)
        if silent := [r for r, line in after.items() if line != _DONE and not line.startswith(_LOST)]:
            return silent
        behind = {rank: line for rank, line in before.items() if line != _DONE}
        counts = {rank: int(line) if line.isdigit() else -1 for rank, line in behind.items()}
        return [rank for rank, count in counts.items() if count == min(counts.values())]

    def await_receivers(self, push: int, *, done: bool) -> Sequence[int]:
        """Wait until each receiver has begun (or finished) a push. Returns the ranks that did not.

        They have `timeout_s` to begin from `begin_push`, or to finish from now. A receiver that reports an
        error ends the wait at once.
        """
        stage = "ended" if done else "push"
        keys = [f"{stage}/{push}/{rank}" for rank in range(1, self.world_size)]
        failed = f"failed/{push}"
        # What this end did since the push began is no reason to wait longer for the others.
        limit_s = self.timeout_s if done else self.timeout_s - (time.monotonic() - self._began)
        all_there = self._await(lambda: bool(self._store.check(keys)), limit_s, failed)
        if all_there and not self._store.check([failed]):
            return []
        lines = self.progress(push)
        return list(_errors_in(lines)) or [
            rank for rank, line in lines.items() if (line != _DONE if done else line == "absent")
        ]

    def close(self) -> None:
        """Drop the connections without waiting for broadcasts that are stuck. The store goes with rank 0."""
        self._drop_memory()
        gloo, self._gloo = self._gloo, None
        if gloo is not None:
            # gloo ends a broadcast that waits for a stopped peer at its time limit, not before.
            threading.Thread(target=gloo.shutdown, name="weight-transfer-close", daemon=True).start()
