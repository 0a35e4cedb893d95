"""What actors ask for, in Ray's terms. Imports no Ray: a plan must not wait for it."""

from __future__ import annotations

from collections import Counter

from trd_ray.config import ResourceConfig
from trd_ray.placement_plan import PlacementPlan

GIB = 2**30


def ray_amounts(resources: ResourceConfig) -> dict[str, float]:
    """Resources in Ray's terms: cores, GPUs, bytes."""
    amounts = {
        "CPU": resources.cpus,
        "GPU": resources.gpus,
        "memory": float(int(resources.memory_gib * GIB)),
    }
    return {name: amount for name, amount in amounts.items() if amount > 0}


def total_request(plan: PlacementPlan) -> Counter[str]:
    """Sum of all bundles, by Ray resource name."""
    total: Counter[str] = Counter()
    for bundle in plan.bundles:
        total.update(ray_amounts(bundle.resources))  # type: ignore[arg-type]
    return total
