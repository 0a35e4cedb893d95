"""The placement as text: nodes, their GPUs, and which actors sit on them.

The cluster decides which node a bundle lands on; drawn is what the strategy gives on empty nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trd_ray.choices import PlacementStrategy
from trd_ray.placement_plan import Bundle, PlacementPlan, Seat


@dataclass
class _Node:
    num_free: int
    num_gpus: int
    lines: list[str] = field(default_factory=list)

    def take(self, num: int) -> int:
        """The first of `num` GPUs that are taken."""
        first = self.num_gpus - self.num_free
        self.num_free -= num
        return first


def draw_placement(plan: PlacementPlan, *, gpus_per_node: int) -> tuple[str, ...]:
    """One line a node, a bundle, or an actor that takes turns with others.

    Args:
        gpus_per_node: no bundle asks for more.
    """
    nodes = [_Node(gpus_per_node, gpus_per_node) for _ in range(_num_nodes(plan, gpus_per_node))]
    for bundle in plan.bundles:
        node = _choose(nodes, bundle, plan.strategy)
        node.lines += _bundle_lines(bundle, first=node.take(bundle.num_gpus))
    shared = sum(bundle.shared for bundle in plan.bundles)
    taking_turns = f", {shared} of them shared in turns" if shared else ""
    bundles = f"{len(plan.bundles)} bundle{'' if len(plan.bundles) == 1 else 's'}"
    lines = [f"{len(plan.seats)} actors in {bundles}{taking_turns}; {plan.strategy.value}"]
    for number, node in enumerate(nodes):
        free = f", {node.num_free} of {gpus_per_node} GPUs free" if _has_gpus(plan) else " (no GPUs)"
        lines.append(f"node {number}{free}")
        lines += [f"  {line}" for line in node.lines]
    return tuple(lines)


def _has_gpus(plan: PlacementPlan) -> bool:
    return any(bundle.num_gpus for bundle in plan.bundles)


def _num_nodes(plan: PlacementPlan, gpus_per_node: int) -> int:
    """As few as first fit needs, whatever the strategy: how many there are is not known here."""
    free: list[int] = [gpus_per_node]
    for bundle in plan.bundles:
        fitting = [i for i, num in enumerate(free) if num >= bundle.num_gpus]
        if not fitting:
            free.append(gpus_per_node)
        free[fitting[0] if fitting else -1] -= bundle.num_gpus
    return len(free)


def _choose(nodes: list[_Node], bundle: Bundle, strategy: PlacementStrategy) -> _Node:
    fitting = [node for node in nodes if node.num_free >= bundle.num_gpus]
    if not fitting:
        # Spread bundles of unlike sizes may need one node more than packed ones.
        nodes.append(_Node(nodes[0].num_gpus, nodes[0].num_gpus))
        return nodes[-1]
    if strategy is PlacementStrategy.SPREAD and bundle.num_gpus:
        return max(fitting, key=lambda node: node.num_free)
    return fitting[0]


def _bundle_lines(bundle: Bundle, *, first: int) -> list[str]:
    where = _gpus(tuple(range(first, first + bundle.num_gpus)))
    given = f"{bundle.resources.cpus:g} cores, {bundle.resources.memory_gib:g} GiB"
    if not bundle.shared:
        return [f"{where:<9} {_what(bundle.seats[0])} ({given})"]
    lines = [f"{where:<9} in turns ({given}):"]
    for seat in bundle.seats:
        own = _gpus(tuple(first + device for device in seat.devices))
        on = f" on {own}" if bundle.num_gpus > 1 else ""
        share = f", asks for {seat.asked.gpus:g} GPU" if bundle.num_gpus else ""
        lines.append(f"{'':<9}   {_what(seat)}{on}{share}")
    return lines


def _what(seat: Seat) -> str:
    parallel = f", tensor parallel {len(seat.devices)}" if len(seat.devices) > 1 else ""
    return f"{seat.name}{parallel}"


def _gpus(numbers: tuple[int, ...]) -> str:
    if not numbers:
        return "no GPU"
    return f"GPU {numbers[0]}" if len(numbers) == 1 else f"GPU {numbers[0]}-{numbers[-1]}"
