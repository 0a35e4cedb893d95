"""Axes: what differs between trials, and the values that it takes."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from enum import StrEnum

from trd_ray.seeds import derive_seed

Value = str | int | float | bool
Setting = tuple[str, Value]
"""A key of the configuration (or `method`, `config`) and its value."""
Point = tuple[Setting, ...]
"""One value for each key of one axis, or of all."""

METHOD = "method"
"""The axis whose values are files laid over the base configuration."""
CONFIG = "config"
"""The axis whose values are files in place of the base configuration."""


class AxisKind(StrEnum):
    """How values are chosen."""

    GRID = "grid"
    CHOICE = "choice"
    UNIFORM = "uniform"
    LOGUNIFORM = "loguniform"

    @property
    def is_range(self) -> bool:
        return self in (AxisKind.UNIFORM, AxisKind.LOGUNIFORM)

    @property
    def is_random(self) -> bool:
        return self is not AxisKind.GRID


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis; with several keys, which move together, if it is a `zip`."""

    keys: tuple[str, ...]
    kind: AxisKind
    points: tuple[Point, ...] = ()
    """Of `grid` and `choice`."""
    low: float = 0.0
    """Of `uniform` and `loguniform`, which have one key."""
    high: float = 0.0
    place: str
    """File and line."""

    @property
    def id(self) -> str:
        """The first key, which no other axis has."""
        return self.keys[0]

    def draw(self, seed: int, number: int) -> Point:
        """The `number`-th draw of a random axis; it depends on `seed`, `number` and the axis alone."""
        rng = random.Random(derive_seed(seed, "axis", self.id, number))
        if self.kind is AxisKind.CHOICE:
            return rng.choice(self.points)
        if self.kind is AxisKind.UNIFORM:
            value = rng.uniform(self.low, self.high)
        else:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return self.at(min(max(value, self.low), self.high))

    def at(self, value: float) -> Point:
        """A point of a range."""
        return ((self.id, value),)

    def probes(self) -> tuple[Point, ...]:
        """All points, or both ends of a range."""
        return (self.at(self.low), self.at(self.high)) if self.kind.is_range else self.points
