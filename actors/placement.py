"""Placement on a Ray cluster: all bundles of a plan reserved together, or a report of what is missing.

A bundle is on one node always; the strategy decides how bundles lie over nodes. `PACK` (not
`STRICT_PACK`) keeps the ranks' collectives and the pushes on few nodes, and still works where one node
is too small; `SPREAD` likewise is a wish and no condition.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.amounts import GIB, ray_amounts, total_request
from actors.calls import call
from trd_ray.errors import PlacementError, describe
from trd_ray.placement_plan import Bundle, PlacementPlan, Seat

log = logging.getLogger(__name__)

_REPORT_EVERY_S = 5.0


async def reserve(plan: PlacementPlan, *, timeout_s: float) -> PlacementGroup:
    """Reserve every bundle, logging what is missing while it waits.

    Raises `PlacementError` with the shortage after `timeout_s` seconds; nothing stays reserved.
    """
    group = placement_group(
        [ray_amounts(bundle.resources) for bundle in plan.bundles], strategy=plan.strategy.name
    )
    placed = False
    try:
        await _wait(group, plan, timeout_s=timeout_s)
        placed = True
    finally:
        if not placed:
            remove_placement_group(group)
    return group


async def _wait(group: PlacementGroup, plan: PlacementPlan, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        patience = min(_REPORT_EVERY_S, max(0.1, deadline - time.monotonic()))
        # In a thread: a Ctrl-C must reach the event loop meanwhile.
        if await asyncio.to_thread(group.wait, timeout_seconds=patience):
            return
        shortage = describe_shortage(plan)
        if time.monotonic() >= deadline:
            raise PlacementError(
                describe(
                    "the actors do not fit on the cluster",
                    where=", ".join(map(_bundle_words, plan.bundles)),
                    got=f"{shortage}; waited {timeout_s:.0f} s",
                    expected="room for all of them at once",
                    remedy="ask for fewer actors or smaller resources.*, add nodes, or free the cluster",
                )
            )
        log.warning("waiting for placement: %s", shortage)


def _bundle_words(bundle: Bundle) -> str:
    return f"{'+'.join(seat.name for seat in bundle.seats)} {ray_amounts(bundle.resources)}"


def describe_shortage(plan: PlacementPlan) -> str:
    """What is asked, what exists and what is free, for each resource that is asked for."""
    exists, free = ray.cluster_resources(), ray.available_resources()
    parts = []
    for name, amount in total_request(plan).items():
        scale, unit = (GIB, " GiB") if name == "memory" else (1, "")
        parts.append(
            f"{name}: asked {amount / scale:g}{unit}, cluster has {exists.get(name, 0) / scale:g}{unit}, "
            f"free {free.get(name, 0) / scale:g}{unit}"
        )
    return "; ".join(parts)


async def gpu_ids(
    plan: PlacementPlan, group: PlacementGroup, *, timeout_s: float
) -> dict[int, tuple[str, ...]]:
    """The GPUs' own numbers in each bundle whose actors must be told them.

    Ray gives an actor with a fraction of a GPU the GPU that it chooses. In a bundle with one GPU that is
    the right one. In a bundle with several, two learner ranks may get the same, and an engine over
    several cannot ask for a fraction of each. There a task that takes the whole bundle for a moment
    finds out which GPUs it has, which do not change while it is reserved.
    """
    pinned = [i for i, bundle in enumerate(plan.bundles) if bundle.shared and bundle.num_gpus > 1]
    refs = [
        _own_gpu_ids.options(
            num_gpus=plan.bundles[i].num_gpus, num_cpus=0, scheduling_strategy=_in_bundle(group, i)
        ).remote()
        for i in pinned
    ]
    found = await asyncio.gather(
        *(
            call(ref, actor=f"bundle {i}", method="gpu_ids", timeout_s=timeout_s)
            for i, ref in zip(pinned, refs, strict=True)
        )
    )
    return {i: tuple(ids) for i, ids in zip(pinned, found, strict=True)}


@ray.remote
def _own_gpu_ids() -> list[str]:
    return [str(number) for number in ray.get_gpu_ids()]


def actor_options(
    seat: Seat, group: PlacementGroup, *, gpus: Mapping[int, Sequence[str]], threads: int
) -> dict[str, Any]:
    """Ray's options of the actor in a seat.

    Args:
        gpus: of `gpu_ids`.
        threads: OpenMP threads.
    """
    # OpenMP reads it when torch is loaded, which is before an actor's own first line.
    variables = {"OMP_NUM_THREADS": str(threads)}
    if seat.bundle in gpus:
        # The bundle holds these GPUs for this run alone; which of its own actors sees which is ours
        # to say, since Ray's fractions here are no more than counters.
        variables["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] = "1"
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[seat.bundle][device] for device in seat.devices)
    asked = ray_amounts(seat.asked)
    return {
        "num_cpus": asked.get("CPU", 0),
        "num_gpus": asked.get("GPU", 0),
        "memory": asked.get("memory", 0),
        "scheduling_strategy": _in_bundle(group, seat.bundle),
        "runtime_env": {"env_vars": variables},
    }


def _in_bundle(group: PlacementGroup, bundle: int) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=bundle)
