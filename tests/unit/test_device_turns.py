"""At any time at most one role is awake, whatever the order of stages."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import RecordingObserver
from trd_ray.device_turns import NoTurns, Residence, RoleTurns
from trd_ray.roles import Role
from trd_ray.stage_clock import Stage, StageClock
from trd_ray.step_stages import StepStages

A, W, S = Residence.AWAKE, Residence.WEIGHTS, Residence.ASLEEP


@dataclass
class Devices:
    """What each role holds. A role that grows holds the new from the start, one that shrinks the old to
    the end, so that an overlap shows."""

    at: dict[Role, Residence]
    moves: list[tuple[Role, Residence]] = field(default_factory=list)
    most_awake: int = 0

    def check(self) -> None:
        awake = sum(residence is A for residence in self.at.values())
        self.most_awake = max(self.most_awake, awake)
        assert awake == 0 or W not in self.at.values(), self.at


@dataclass
class Engines:
    role: Role
    devices: Devices
    fails: bool = False

    async def reside(self, residence: Residence) -> None:
        size = [S, W, A].index
        grows = size(residence) > size(self.devices.at[self.role])
        if grows:
            self.devices.at[self.role] = residence
            self.devices.check()
        await asyncio.sleep(0)
        if self.fails:
            raise TimeoutError(self.role)
        self.devices.at[self.role] = residence
        self.devices.moves.append((self.role, residence))
        self.devices.check()


def rig(*, teacher: bool = True, pushes_teacher: bool = False) -> tuple[RoleTurns, Devices, dict]:
    at = {Role.GENERATOR: S, Role.LEARNER: A} | ({Role.TEACHER: S} if teacher else {})
    devices = Devices(dict(at))
    tenants = {role: Engines(role, devices) for role in at}
    return RoleTurns(tenants, at=at, pushes_teacher=pushes_teacher), devices, tenants


WORKER = {
    Stage.ROLLOUT: Role.GENERATOR,
    Stage.REFINE: Role.TEACHER,
    Stage.SCORE: Role.TEACHER,
    Stage.LEARN: Role.LEARNER,
}


@settings(deadline=None)
@given(order=st.lists(st.sampled_from(list(Stage)), max_size=12), teacher=st.booleans(), pushed=st.booleans())
def test_at_most_one_role_is_awake_whatever_the_order(order: list[Stage], teacher: bool, pushed: bool):
    turns, devices, _ = rig(teacher=teacher, pushes_teacher=pushed)

    async def run() -> None:
        for stage in order:
            await turns.begin(stage)
            awake = [role for role, residence in devices.at.items() if residence is A]
            if stage is Stage.SYNC:
                assert awake == []
                assert devices.at[Role.LEARNER] is devices.at[Role.GENERATOR] is W
                assert not teacher or devices.at[Role.TEACHER] is (W if pushed else S)
            elif teacher or WORKER[stage] is not Role.TEACHER:
                assert awake == [WORKER[stage]]
        assert devices.most_awake <= 1

    asyncio.run(run())


async def test_a_stage_that_follows_its_own_moves_nothing():
    turns, devices, _ = rig()
    await turns.begin(Stage.REFINE)
    moved = len(devices.moves)
    await turns.begin(Stage.SCORE)
    assert len(devices.moves) == moved


async def test_who_failed_to_give_room_is_asked_again():
    turns, devices, tenants = rig()
    tenants[Role.LEARNER].fails = True
    with pytest.raises(TimeoutError):
        await turns.begin(Stage.ROLLOUT)
    assert devices.at[Role.GENERATOR] is S  # nobody wakes while another is in the way
    tenants[Role.LEARNER].fails = False
    await turns.begin(Stage.LEARN)
    assert devices.at[Role.LEARNER] is A


@dataclass
class Recorded:
    begun: list[Stage] = field(default_factory=list)
    inside: int = 0

    async def begin(self, stage: Stage) -> None:
        assert self.inside == 0, "a trajectory is in another stage"
        self.begun.append(stage)
        await asyncio.sleep(0)


async def test_each_stage_begins_once_and_before_any_trajectory_is_in_it():
    turns = Recorded()
    stages = StepStages(
        num_trajectories=5, barrier=True, clock=StageClock(), observer=RecordingObserver(), turns=turns
    )

    async def trajectory(number: int) -> None:
        for stage in (Stage.ROLLOUT, Stage.REFINE, Stage.SCORE):
            if (number, stage) != (3, Stage.REFINE):  # one that has no rewrite
                async with stages.stage(stage):
                    assert turns.begun[-1] is stage
                    turns.inside += 1
                    for _ in range(number):
                        await asyncio.sleep(0)
                    turns.inside -= 1
            await stages.wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(trajectory(number))
    assert turns.begun == [Stage.ROLLOUT, Stage.REFINE, Stage.SCORE]


def test_turns_need_the_barrier():
    def stages(turns: object) -> StepStages:
        return StepStages(
            num_trajectories=1, barrier=False, clock=StageClock(), observer=RecordingObserver(), turns=turns
        )

    with pytest.raises(ValueError, match="without a barrier"):
        stages(Recorded())
    stages(NoTurns())
