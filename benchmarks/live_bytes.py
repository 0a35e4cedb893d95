"""Bytes of tensors that live on the CPU: those that a step adds at its peak, and those that stay.

The interpreter and its libraries take far more than a small model, so that the process's own size says
little. torch's allocator reports every tensor that it makes and frees; that is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from torch.profiler import ProfilerActivity, profile


@dataclass
class Peak:
    """Filled when the block of `peak_bytes` ends."""

    num_bytes: int = 0
    """Most bytes at one time beyond those that were there before."""
    left: int = 0
    """Bytes that are still there at the end."""


@contextmanager
def peak_bytes() -> Iterator[Peak]:
    """Watch torch's CPU allocator while the block runs, in this thread and its children."""
    peak = Peak()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watching:
        yield peak
    now = 0
    for size in _allocations(watching):
        now += size
        peak.num_bytes = max(peak.num_bytes, now)
    peak.left = now


def _allocations(watching: profile) -> list[int]:
    """Sizes in the order of time, negative where memory was freed."""
    results = watching.profiler.kineto_results  # type: ignore[union-attr]
    waiting, events = list(results.experimental_event_tree()), []
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag.name == "Allocation" and event.extra_fields.device.type == "cpu":
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    # Of two at the same instant the larger first, so that a peak is never missed.
    return [size for _, size in sorted(events, key=lambda each: (each[0], -each[1]))]


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind `tensors`, each counted once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
