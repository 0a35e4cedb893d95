"""What `trd_ray.activity` reports: names, the record of one step, and who is told of each change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from trd_ray.roles import Role

LEARNER = "learner"
"""The learner is one actor, however many ranks it has."""
VERIFY, CHECKPOINT = "verify", "checkpoint"
"""Work that is no stage of a step by itself."""


class ActorState(StrEnum):
    """What an actor is doing; where several hold, the first of `DOWN`, `BUSY`, `WAITING`, `IDLE`."""

    BUSY = "busy"
    """At least one call of it is outstanding."""
    WAITING = "waiting"
    """Nothing is outstanding, because something holds it back; see `WaitReason`."""
    IDLE = "idle"
    """There is nothing for it to do."""
    DOWN = "down"
    """It is being restarted."""


class WaitReason(StrEnum):
    """What holds an actor back."""

    STARVED = "starved"
    """The learner has no whole batch yet."""
    STALENESS = "staleness"
    """Rollouts begun now would be older than `pipeline.max_staleness` when they are learnt from."""
    IN_FLIGHT = "in_flight"
    """`pipeline.max_in_flight` prompts are under way."""
    PUSH = "push"
    """Other actors are being given new weights."""


class Tally(StrEnum):
    """What is counted over a step. Restarts are not here: `RoleActivity.down` counts them."""

    STALE_DROPPED = "stale_dropped"
    """Trajectories dropped because they were older than `pipeline.max_staleness`."""
    REFRESHED = "refreshed"
    """Trajectories of that kind whose prompt was answered anew."""
    RETRY = "retry"
    """Requests that a failed actor left behind and another one was given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthLap:
    """A number of things in a place, over one step."""

    mean: float
    """Weighted by time."""
    max: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleLap:
    """One role over one step, in seconds: means over its actors.

    `busy_s + waiting_s + idle_s + down_s` is the step's wall time.
    """

    num_actors: int
    busy_s: float
    waiting_s: float
    idle_s: float
    down_s: float
    busy_by_stage_s: Mapping[str, float]
    """With a call of the stage outstanding. Stages overlap, so that the sum may be above `busy_s`."""
    num_restarts: int
    queue: DepthLap
    """Requests that wait for a slot at one of its actors."""

    @property
    def busy_share(self) -> float:
        """Of the step's wall time; 0 for a step of no length."""
        step_s = self.busy_s + self.waiting_s + self.idle_s + self.down_s
        return self.busy_s / step_s if step_s > 0 else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivityLap:
    """All roles over one step."""

    learner_step: int
    step_s: float
    roles: Mapping[Role, RoleLap]
    """Roles that have an actor."""
    buffer: DepthLap
    """Trajectories in the buffer."""
    in_flight: DepthLap
    """Prompts between their draw and the buffer."""
    counts: Mapping[Tally, int]
    """Every tally is a key."""


class ActivityListener(Protocol):
    """Told of each change, in order. `at` is the activity's own clock, in seconds."""

    def on_actor(self, role: Role, actor: str | None, state: ActorState, label: str, at: float) -> None:
        """An actor, or the role as a whole (`actor` is None), is in this state from `at` on.

        May repeat the state before. `label` names the stages (`refine+score`), the reason of a wait, or
        is empty. A role is busy while any actor of it is, and down if all are.
        """
        ...

    def on_depth(self, name: str, depth: int, at: float) -> None:
        """A queue, the buffer or the prompts in flight have this many from `at` on."""
        ...

    def on_mark(self, name: str, detail: str, at: float) -> None:
        """Something happened: a push, a checkpoint, a restart."""
        ...

    def on_lap(self, lap: ActivityLap, at: float) -> None:
        """A step has ended and the next one begins."""
        ...
