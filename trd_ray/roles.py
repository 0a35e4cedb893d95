"""The roles of a run whose actors compute."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What an actor does."""

    LEARNER = "learner"
    GENERATOR = "generator"
    TEACHER = "teacher"
