"""Where the ranks of a learner group meet, and the group that they form."""

from __future__ import annotations

import socket
from datetime import timedelta

import torch
import torch.distributed as dist

from actors.meeting_place import OWN_ADDRESS, own_address
from actors.weight_transfer_group import listen_on
from trd_ray.errors import PlacementError, describe


class Meeting:
    """One rank's way into the group."""

    def __init__(self, *, rank: int, world_size: int, timeout: timedelta) -> None:
        """
        Args:
            timeout: longest wait in a collective for another rank.
        """
        self._rank = rank
        self._world_size = world_size
        self._timeout = timeout
        self._listener: socket.socket | None = None

    def find_master(self, host: str) -> tuple[str, int]:
        """An address and a free port on this node; see `LearnerRank.find_master`."""
        address = own_address(host)
        # Kept open until `join`: nobody else can take the port, and torch, given no socket, would
        # listen on every address of the machine.
        try:
            self._listener = listen_on(address)
        except OSError as error:
            raise PlacementError(
                describe(
                    "the learner's first rank cannot listen on the address where the others meet it",
                    where="weight_sync.host",
                    got=f"{address}: {error}",
                    expected=f"an address of its node, which Ray knows as {own_address(OWN_ADDRESS)}",
                    remedy="weight_sync.host=auto, which takes that one",
                )
            ) from error
        return address, int(self._listener.getsockname()[1])

    def join(self, backend: str, address: str, port: int) -> None:
        """Meet the other ranks; the store's server, on rank 0, listens on the address alone."""
        if dist.is_initialized():
            return  # a second learner in one process shares the group
        store = dist.TCPStore(
            host_name=address,
            port=port,
            world_size=self._world_size,
            is_master=self._rank == 0,
            timeout=self._timeout,
            wait_for_workers=False,
            master_listen_fd=None if self._listener is None else self._listener.detach(),
        )
        dist.init_process_group(
            backend, store=store, rank=self._rank, world_size=self._world_size, timeout=self._timeout
        )


def gather_values(*values: float, device: torch.device) -> list[tuple[float, ...]]:
    """`values` of each rank, in their order: a sum over them is the same number everywhere. Collective."""
    mine = torch.tensor(values, dtype=torch.float64, device=device)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return [tuple(part.tolist()) for part in parts]
