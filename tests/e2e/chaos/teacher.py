"""A teacher that can fail."""

from __future__ import annotations

import dataclasses

import numpy as np

from actors.teacher import TeacherHolder
from tests.e2e.chaos.faults import Kind, Moment, Target
from tests.e2e.chaos.mood import Mood, not_finite
from trd_ray.types import TeacherHidden, TopKTargets


class ChaosTeacher(TeacherHolder):
    def __init__(self, *args, **kwargs) -> None:
        self._mood = Mood(Target.TEACHER)
        super().__init__(*args, **kwargs)

    async def start(self) -> None:
        await self._mood.pass_by(Moment.START)
        await super().start()

    async def generate(self, *args, **kwargs):
        kind = await self._mood.pass_by(Moment.REFINE)
        made = await super().generate(*args, **kwargs)
        if kind is Kind.NONSENSE:
            return dataclasses.replace(made, completion=not_finite(made.completion))
        return made

    async def score(self, *args, **kwargs) -> TeacherHidden | TopKTargets:
        kind = await self._mood.pass_by(Moment.SCORE)
        made = await super().score(*args, **kwargs)
        if kind is Kind.NONSENSE:
            return TeacherHidden(hidden=np.full_like(made.hidden, np.nan))
        return made
