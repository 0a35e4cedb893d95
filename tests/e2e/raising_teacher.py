"""A run whose teacher has a bug: `python -m tests.e2e.raising_teacher train CONFIG ... --local`."""

from __future__ import annotations

import functools

import ray

import launch.cli
import launch.train
from actors.teacher import TeacherHolder
from launch.ray_actors import REAL_ACTORS, ActorClasses
from launch.wiring_ray import ray_roles


class RaisingTeacher(TeacherHolder):
    async def generate(self, *args: object, **kwargs: object) -> object:
        return self._look_up({})

    def _look_up(self, table: dict[str, object]) -> object:
        return table["the bug of this test"]


if __name__ == "__main__":
    classes = ActorClasses(
        generator=REAL_ACTORS.generator, teacher=ray.remote(RaisingTeacher), learner=REAL_ACTORS.learner
    )
    wiring = functools.partial(ray_roles, classes=classes)
    launch.train.train = functools.partial(launch.train.train, wiring=wiring)
    launch.cli.main()
