"""The roles of a run whose actors compute."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What an actor does; in the order in which a trajectory meets them."""

    GENERATOR = "generator"
    TEACHER = "teacher"
    LEARNER = "learner"
