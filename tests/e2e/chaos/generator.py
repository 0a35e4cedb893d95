"""A generator that can fail."""

from __future__ import annotations

from actors.generator import GeneratorHolder
from tests.e2e.chaos.faults import Kind, Moment, Target
from tests.e2e.chaos.mood import Mood, not_finite
from trd_ray.types import Completion


class ChaosGenerator(GeneratorHolder):
    def __init__(self, *args, **kwargs) -> None:
        self._mood = Mood(Target.GENERATOR)
        super().__init__(*args, **kwargs)

    async def start(self) -> None:
        await self._mood.pass_by(Moment.START)
        await super().start()

    async def generate(self, *args, **kwargs) -> Completion:
        kind = await self._mood.pass_by(Moment.ROLLOUT)
        made = await super().generate(*args, **kwargs)
        return not_finite(made) if kind is Kind.NONSENSE else made

    async def update_weights(self, *args, **kwargs) -> None:
        await self._mood.pass_by(Moment.SYNC)
        await super().update_weights(*args, **kwargs)
