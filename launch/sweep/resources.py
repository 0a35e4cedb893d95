"""What Ray Tune reserves for a trial, and how many trials fit at once.

With `ray.address=local` each trial starts a private Ray on this machine, so Tune reserves, as one bundle,
all that the trial's actors and its own process will take: what is counted there is what bounds the number
of trials. On a cluster that exists a trial joins it and its actors reserve their own placement group;
reserved by Tune too, everything would be counted twice. So there Tune reserves the trial's own process
alone, on the node of the sweep (where its folder is), and starts as many trials as fit on the nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actors.amounts import ray_amounts, total_request
from trd_ray.config import TrdConfig
from trd_ray.placement_plan import PlacementPlan, placement_plan
from trd_ray.sweep.options import TrialsConfig

Amounts = dict[str, float]
"""By Ray's resource names."""

_PIN = 0.001
"""Of a node's own resource, which Ray has for placing something on it."""


def private_request(config: TrdConfig, trials: TrialsConfig, machine: Mapping[str, float]) -> Amounts:
    """One bundle for a trial with a Ray of its own; never more than `machine` has, so that each can run."""
    asked: Amounts = {"CPU": trials.driver_cpus}
    if not trials.no_ray:
        for name, amount in total_request(placement_plan(config)).items():
            asked[name] = asked.get(name, 0.0) + amount
    return {name: min(amount, machine.get(name, amount)) for name, amount in asked.items()}


def driver_request(trials: TrialsConfig, node: str) -> Amounts:
    """One bundle for a trial that joins the cluster: its own process, on this node."""
    return {"CPU": trials.driver_cpus, node: _PIN}


def num_fitting(plan: PlacementPlan, trials: TrialsConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many copies of a plan fit on empty nodes at once, by first fit; the first node holds the drivers.

    0 if not even one does.
    """
    free = [dict(node) for node in nodes]
    driver = {"CPU": trials.driver_cpus}
    bundles = sorted((ray_amounts(b.resources) for b in plan.bundles), key=_size, reverse=True)
    count = 0
    while _take(free[:1], driver) and all(_take(free, bundle) for bundle in bundles):
        count += 1
    return count


def _size(amounts: Mapping[str, float]) -> tuple[float, float, float]:
    return tuple(amounts.get(name, 0.0) for name in ("GPU", "CPU", "memory"))  # type: ignore[return-value]


def _take(free: Sequence[Amounts], wanted: Mapping[str, float]) -> bool:
    """Take `wanted` from the first node that has it."""
    for node in free:
        if all(node.get(name, 0.0) >= amount - 1e-9 for name, amount in wanted.items()):
            for name, amount in wanted.items():
                node[name] -= amount
            return True
    return False


def most_at_once(
    configs: Sequence[TrdConfig], trials: TrialsConfig, nodes: Sequence[Mapping[str, float]]
) -> int:
    """How many trials may run on a cluster, whichever they are; at least 1, which then says what it lacks."""
    plans = {placement_plan(config) for config in configs}
    fitting = min(num_fitting(plan, trials, nodes) for plan in plans)
    return max(1, min(fitting, trials.max_concurrent or fitting))
