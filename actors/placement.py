"""Placement: one bundle an actor, reserved together, or a report of what is missing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from trd_ray.config import ResourceConfig, TrdConfig
from trd_ray.errors import PlacementError, describe

log = logging.getLogger(__name__)

GIB = 2**30
_REPORT_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ActorRequest:
    """What one actor asks for."""

    name: str
    resources: ResourceConfig

    def bundle(self) -> dict[str, float]:
        """The request in Ray's terms: cores, GPUs, bytes."""
        amounts = {
            "CPU": self.resources.cpus,
            "GPU": self.resources.gpus,
            "memory": float(int(self.resources.memory_gib * GIB)),
        }
        return {name: amount for name, amount in amounts.items() if amount > 0}


def actor_requests(config: TrdConfig) -> tuple[ActorRequest, ...]:
    """All actors of a run, in the order of their bundles: learners, generators, teachers."""
    groups = (
        ("learner", config.learner.num_ranks, config.learner.resources),
        ("generator", config.generator.num_actors, config.generator.resources),
        ("teacher", config.teacher.num_actors if config.teacher_group else 0, config.teacher.resources),
    )
    return tuple(
        ActorRequest(name=f"{role}-{i}", resources=resources)
        for role, num, resources in groups
        for i in range(num)
    )


def total_request(requests: Sequence[ActorRequest]) -> Counter[str]:
    """Sum of all bundles, by Ray resource name."""
    total: Counter[str] = Counter()
    for request in requests:
        total.update(request.bundle())  # type: ignore[arg-type]
    return total


async def reserve(requests: Sequence[ActorRequest], *, timeout_s: float) -> PlacementGroup:
    """Reserve every bundle, logging what is missing while it waits.

    Raises `PlacementError` with the shortage after `timeout_s` seconds; nothing stays reserved.
    """
    group = placement_group([request.bundle() for request in requests], strategy="PACK")
    placed = False
    try:
        await _wait(group, requests, timeout_s=timeout_s)
        placed = True
    finally:
        if not placed:
            remove_placement_group(group)
    return group


async def _wait(group: PlacementGroup, requests: Sequence[ActorRequest], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        patience = min(_REPORT_EVERY_S, max(0.1, deadline - time.monotonic()))
        # In a thread: a Ctrl-C must reach the event loop meanwhile.
        if await asyncio.to_thread(group.wait, timeout_seconds=patience):
            return
        shortage = describe_shortage(requests)
        if time.monotonic() >= deadline:
            raise PlacementError(
                describe(
                    "the actors do not fit on the cluster",
                    where=", ".join(f"{r.name} {r.bundle()}" for r in requests),
                    got=f"{shortage}; waited {timeout_s:.0f} s",
                    expected="room for all of them at once",
                    remedy="ask for fewer actors or smaller resources.*, add nodes, or free the cluster",
                )
            )
        log.warning("waiting for placement: %s", shortage)


def describe_shortage(requests: Sequence[ActorRequest]) -> str:
    """What is asked, what exists and what is free, for each resource that is asked for."""
    exists, free = ray.cluster_resources(), ray.available_resources()
    parts = []
    for name, amount in total_request(requests).items():
        scale, unit = (GIB, " GiB") if name == "memory" else (1, "")
        parts.append(
            f"{name}: asked {amount / scale:g}{unit}, cluster has {exists.get(name, 0) / scale:g}{unit}, "
            f"free {free.get(name, 0) / scale:g}{unit}"
        )
    return "; ".join(parts)
