"""Memory that the sender of a push shares with the receivers on its machine.

It is a file without a name (memfd_create), which receivers find through the sender's entry in /proc. So
nothing is left behind, however a process ends, and the size of /dev/shm, small in containers, sets no limit.
Another user's processes cannot open it. The sender writes; receivers map it for reading only.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import warnings
import weakref

import torch

from trd_ray.errors import WeightSyncError, describe
from trd_ray.weights import TensorSpec

logger = logging.getLogger(__name__)


class SharedMemory:
    """One end of it. It only grows, so that no receiver ever reads beyond its end."""

    def __init__(self, descriptor: int, ticket: str) -> None:
        self._descriptor = descriptor
        # Also for an end that nobody closes: it would keep a copy of all weights.
        self._closer = weakref.finalize(self, os.close, descriptor)
        self.ticket = ticket
        """What `find` needs."""
        self._mapped: torch.Tensor | None = None
        self._views: dict[tuple[int, str, tuple[int, ...]], torch.Tensor] = {}

    @classmethod
    def create(cls) -> SharedMemory | None:
        """The sender's end, empty; None, and a warning, where the system gives no such memory."""
        # By this name a receiver knows that it has found this memory, and not another process's file.
        name = f"trd-ray-weights-{secrets.token_hex(16)}"
        try:
            descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        except (AttributeError, OSError) as error:  # not Linux, or forbidden
            logger.warning("weights travel through sockets: this system gives no shared memory (%s)", error)
            return None
        return cls(descriptor, f"{os.getpid()} {descriptor} {name}")

    @classmethod
    def find(cls, ticket: str) -> SharedMemory | None:
        """A receiver's end; None if the sender is on another machine or in another container."""
        process, descriptor, name = ticket.split()
        path = f"/proc/{process}/fd/{descriptor}"
        try:
            if os.readlink(path) != f"/memfd:{name} (deleted)":
                return None
            return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC), ticket)
        except OSError:
            return None

    def write(self, num_bytes: int) -> torch.Tensor:
        """On the sender: the first bytes as a flat uint8 tensor.

        Raises:
            WeightSyncError: the system refuses so much.
        """
        try:
            if os.fstat(self._descriptor).st_size < num_bytes:
                os.ftruncate(self._descriptor, num_bytes)
            return self._map(num_bytes, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise WeightSyncError(
                describe(
                    "The memory that engines share cannot be made",
                    where="weight transfer, backend cpu",
                    got=str(error),
                    expected=f"room for {num_bytes:,} bytes beside the weights",
                    remedy="free memory, or set weight_sync.shared_memory=false",
                )
            ) from error

    def read(self, num_bytes: int) -> torch.Tensor:
        """On a receiver: the same; it must not be written to.

        Raises:
            ValueError: the sender has not made it so large.
        """
        return self._map(num_bytes, mmap.PROT_READ)

    def view(self, offset: int, spec: TensorSpec) -> torch.Tensor:
        """One tensor in what `write` or `read` gave last.

        The same push after push: for a small model to make them anew takes as long as to copy them.
        """
        key = (offset, spec.dtype, spec.shape)
        view = self._views.get(key)
        if view is None:
            assert self._mapped is not None  # by `write` or `read`
            view = self._views[key] = as_tensor(self._mapped, offset, spec)
        return view

    def _map(self, num_bytes: int, protection: int) -> torch.Tensor:
        if num_bytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        # Kept from push to push: to map it anew costs a page fault for each 4 KiB.
        if self._mapped is None or len(self._mapped) < num_bytes:
            mapped = mmap.mmap(self._descriptor, num_bytes, mmap.MAP_SHARED, protection)
            self._views.clear()
            with warnings.catch_warnings():
                # torch warns of memory that cannot be written to; the kernel would stop who tried.
                warnings.simplefilter("ignore", UserWarning)
                self._mapped = torch.frombuffer(mapped, dtype=torch.uint8)
        return self._mapped[:num_bytes]

    def close(self) -> None:
        """Give up this end; tensors that were given out stay valid. Safe to call again."""
        self._mapped = None
        self._views.clear()
        self._closer()


def as_tensor(raw: torch.Tensor, offset: int, spec: TensorSpec) -> torch.Tensor:
    """Return the tensor of `spec` as a view of flat bytes (uint8), from `offset` on, which is aligned."""
    return raw[offset : offset + spec.num_bytes].view(spec.torch_dtype).view(spec.shape)
