"""A learner rank that can fail."""

from __future__ import annotations

from actors.learner import LearnerRank
from tests.e2e.chaos.faults import Moment, Target
from tests.e2e.chaos.mood import Mood


class ChaosLearner(LearnerRank):
    def __init__(self, *args, **kwargs) -> None:
        self._mood = Mood(Target.LEARNER)
        super().__init__(*args, **kwargs)

    def setup(self, *args, **kwargs):
        self._mood.strike(Moment.START)
        return super().setup(*args, **kwargs)

    def learn(self, *args, **kwargs):
        self._mood.strike(Moment.LEARN)
        return super().learn(*args, **kwargs)

    def push_weights(self, *args, **kwargs):
        self._mood.strike(Moment.SYNC)
        return super().push_weights(*args, **kwargs)

    def save(self, *args, **kwargs):
        self._mood.strike(Moment.CHECKPOINT)
        return super().save(*args, **kwargs)
