"""Bundles, fractions of GPUs and turns on a real local Ray whose GPUs exist by name only."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import ray
from ray.util.placement_group import remove_placement_group

from actors.cluster import leave_cluster
from actors.engine_options import EngineOptions
from actors.engine_sleep import change_residence
from actors.members import NamedActor
from actors.placement import actor_options, gpu_ids, reserve
from actors.turns import RayTenant, ray_turns
from launch.ray_actors import engine_options
from tests.unit.test_placement_plan import on_gpus
from trd_ray.choices import Device, PlacementMode
from trd_ray.config import EngineConfig, PlacementConfig, TrdConfig
from trd_ray.device_turns import NoTurns, Residence
from trd_ray.errors import ActorTimeoutError
from trd_ray.placement_plan import placement_plan
from trd_ray.stage_clock import Stage


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One node of 4 GPUs; numbers that differ from their positions show who counts what."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "4,5,6,7"
    ray.init(
        address="local", num_cpus=16, num_gpus=4, include_dashboard=False, log_to_driver=False,
        object_store_memory=2 * 10**8, _memory=2**40,
    )  # fmt: skip
    yield
    leave_cluster()
    if before is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = before


class Seeing:
    """Says which GPUs it sees, and remembers what it was told to hold."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def start(self) -> None:
        self.told.append("start")

    async def reside(self, residence: Residence, timeout_s: float) -> None:
        self.told.append(residence.value)

    async def seen(self) -> tuple[str, ...]:
        return tuple(os.environ["CUDA_VISIBLE_DEVICES"].split(","))

    async def history(self) -> list[str]:
        return self.told


class Stuck(Seeing):
    async def reside(self, residence: Residence, timeout_s: float) -> None:
        await asyncio.sleep(3600)


SeeingActor = ray.remote(Seeing)
StuckActor = ray.remote(Stuck)


async def visible(config: TrdConfig) -> dict[str, tuple[str, ...]]:
    """GPUs that each computing actor of a placed run sees."""
    plan = placement_plan(config)
    group = await reserve(plan, timeout_s=30)
    try:
        gpus = await gpu_ids(plan, group, timeout_s=60)
        actors = {
            seat.name: SeeingActor.options(**actor_options(seat, group, gpus=gpus, threads=1)).remote()
            for seat in plan.seats
            if seat.devices
        }
        async with asyncio.timeout(120):
            return {name: await actor.seen.remote() for name, actor in actors.items()}
    finally:
        remove_placement_group(group)


@pytest.mark.usefixtures("cluster")
async def test_colocated_each_gpu_is_seen_by_one_actor_of_each_role():
    seen = await visible(
        on_gpus(generators=2, generator_tp=1, teachers=2, teacher_tp=1, ranks=2, colocated=True)
    )
    assert seen["learner-0"] == seen["generator-0"] == seen["teacher-0"]
    assert seen["learner-1"] == seen["generator-1"] == seen["teacher-1"]
    assert {len(gpus) for gpus in seen.values()} == {1}
    assert seen["learner-0"] != seen["learner-1"]


@pytest.mark.usefixtures("cluster")
async def test_colocated_an_engine_over_several_gpus_sees_those_of_its_ranks():
    seen = await visible(
        on_gpus(generators=2, generator_tp=2, teachers=1, teacher_tp=4, ranks=4, colocated=True)
    )
    ranks = [seen[f"learner-{i}"] for i in range(4)]
    assert len(set(ranks)) == 4
    assert {len(gpus) for gpus in ranks} == {1}
    assert seen["generator-0"] == ranks[0] + ranks[1]
    assert seen["generator-1"] == ranks[2] + ranks[3]
    assert seen["teacher-0"] == ranks[0] + ranks[1] + ranks[2] + ranks[3]


@pytest.mark.usefixtures("cluster")
async def test_disaggregated_no_gpu_is_seen_twice():
    seen = await visible(
        on_gpus(generators=1, generator_tp=2, teachers=1, teacher_tp=1, ranks=1, colocated=False)
    )
    together = [gpu for gpus in seen.values() for gpu in gpus]
    assert len(together) == len(set(together)) == 4
    assert len(seen["generator-0"]) == 2


@pytest.mark.usefixtures("cluster")
async def test_turns_over_ray_and_who_does_not_give_way_is_named():
    actors = {
        role: (NamedActor(name=f"{role}-0", handle=SeeingActor.options(num_cpus=0.1).remote()),)
        for role in ("learner", "generator", "teacher")
    }
    for role in ("generator", "teacher"):
        await actors[role][0].handle.start.remote()
        await RayTenant(lambda group=actors[role]: group, timeout_s=30).reside(Residence.ASLEEP)
    config = TrdConfig(placement=PlacementConfig(mode=PlacementMode.COLOCATED))
    turns = ray_turns(
        config,
        learners=lambda: actors["learner"],
        generators=lambda: actors["generator"],
        teachers=lambda: actors["teacher"],
    )
    for stage in (Stage.SYNC, Stage.ROLLOUT, Stage.SCORE, Stage.LEARN):
        await turns.begin(stage)
    told = {role: await group[0].handle.history.remote() for role, group in actors.items()}
    assert told == {
        "generator": ["start", "asleep", "weights", "awake", "asleep"],
        "teacher": ["start", "asleep", "awake", "asleep"],
        "learner": ["weights", "asleep", "awake"],
    }
    stuck = NamedActor(name="generator-7", handle=StuckActor.options(num_cpus=0.1).remote())
    await stuck.handle.start.remote()
    with pytest.raises(ActorTimeoutError, match=r"generator-7\.reside\(asleep\)"):
        await RayTenant(lambda: [stuck], timeout_s=0.2).reside(Residence.ASLEEP)


def test_disaggregated_there_are_no_turns():
    assert isinstance(ray_turns(TrdConfig(), learners=list, generators=list, teachers=None), NoTurns)


@dataclass
class SleepingEngine:
    """vLLM's engine as far as its memory goes: which allocations are there."""

    resident: set[str] = field(default_factory=lambda: {"weights", "kv_cache"})
    calls: list[str] = field(default_factory=list)

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        self.calls.append(f"sleep {level} {mode}")
        self.resident.clear()

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        self.calls.append(f"wake_up {tags}")
        assert not self.resident & set(tags or ()), "vLLM ignores the tags of what is awake"
        self.resident |= set(tags or ("weights", "kv_cache"))
        return len(self.resident) == 2


HELD = {
    Residence.ASLEEP: set(),
    Residence.WEIGHTS: {"weights"},
    Residence.AWAKE: {"weights", "kv_cache"},
}


@pytest.mark.parametrize("now", list(Residence))
@pytest.mark.parametrize("then", list(Residence))
async def test_every_change_leaves_what_the_residence_says(now: Residence, then: Residence):
    llm = SleepingEngine(set(HELD[now]))
    await change_residence(llm, now, then)  # type: ignore[arg-type]
    assert llm.resident == HELD[then]
    assert all(call in ("sleep 1 wait",) or call.startswith("wake_up") for call in llm.calls)
    assert bool(llm.calls) == (now is not then)


def test_sleep_mode_is_asked_for_only_where_turns_are_taken_on_gpus():
    def options(device: Device, *, takes_turns: bool) -> EngineOptions:
        return engine_options(
            EngineConfig(device=device),
            name="generator-0",
            model="m",
            seed=0,
            weight_transfer=None,
            takes_turns=takes_turns,
        )

    assert options(Device.CUDA, takes_turns=True).sleep_mode
    assert not options(Device.CUDA, takes_turns=False).sleep_mode
    assert not options(Device.CPU, takes_turns=True).sleep_mode
