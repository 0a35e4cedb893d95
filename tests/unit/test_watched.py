"""Watched roles answer as the others do, and what they do is on record."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tests.fakes import FakeGenerator, FakeLearner, FakeTeacher, FakeWeightSync
from trd_ray.activity import RoleActivity
from trd_ray.assembly import Roles
from trd_ray.buffer import TrajectoryBuffer
from trd_ray.roles import Role
from trd_ray.run_folder import RunFolder
from trd_ray.watched import watch_roles


class Marks:
    """Collects the instants."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def on_actor(self, *_args) -> None: ...

    def on_depth(self, *_args) -> None: ...

    def on_lap(self, *_args) -> None: ...

    def on_mark(self, name, detail, at) -> None:
        self.seen.append((name, detail))


def roles() -> Roles:
    generator = FakeGenerator()
    return Roles(
        generator=generator, teacher=FakeTeacher(), learner=FakeLearner(),
        weight_sync=FakeWeightSync(generator),
    )  # fmt: skip


async def test_the_buffer_tells_how_much_it_holds():
    activity = RoleActivity()
    buffer = TrajectoryBuffer(capacity=2, on_depth=activity.buffer.set)
    puts = [asyncio.create_task(buffer.put(SimpleNamespace(number=i))) for i in range(3)]
    await asyncio.gather(*puts[:2])
    assert activity.buffer.value == 2  # the third waits outside
    assert len(await buffer.take(2)) == 2
    assert activity.buffer.value == 0
    await puts[2]
    assert activity.buffer.value == 1


async def test_a_push_occupies_the_learner_and_all_generators_and_is_marked(tmp_path):
    activity, marks = RoleActivity(), Marks()
    activity.listen(marks)
    inner = roles()
    watched = watch_roles(inner, activity, in_process=False, has_teacher=True)
    activity.add("generator-0", Role.GENERATOR)
    activity.add("generator-1", Role.GENERATOR)
    seen: dict[str, int] = {}

    async def push(policy_version: int):
        seen.update(activity.outstanding())
        return policy_version

    inner.weight_sync.push = push
    assert await watched.weight_sync.push(7) == 7
    assert (seen, activity.outstanding()) == ({"sync": 3}, {})
    with RunFolder.create(tmp_path / "run").writing_checkpoint(7) as unfinished:
        await watched.learner.save(unfinished)
    assert marks.seen == [("push", "of version 7"), ("checkpoint", "step_7")]


@pytest.mark.parametrize(("has_teacher", "names"), [(True, {"generator", "teacher"}), (False, {"generator"})])
def test_actors_that_there_are_not_are_not_watched(has_teacher, names):
    activity = RoleActivity()
    watch_roles(roles(), activity, in_process=True, has_teacher=has_teacher)
    assert set(activity.lap(learner_step=1).roles) == names | {"learner"}
