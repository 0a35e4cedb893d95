"""What is recorded of the runtime at each learner step: who was busy, who waited, what was queued.

Part of a row of metrics.jsonl, under the same flat names; rows of runs that were not watched lack them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from trd_ray.activity_records import ActivityLap, ActorState, Tally
from trd_ray.roles import Role


@dataclass(frozen=True, kw_only=True)
class RuntimeMetrics:
    """One step. Seconds are means over a role's actors; the four of a role add up to the step's wall time.

    None: the role has no actors, or the file is of a version that did not record it.
    """

    generator_busy_s: float | None = None
    """At least one call outstanding at the actor."""
    generator_waiting_s: float | None = None
    """Held back: by the staleness bound, `pipeline.max_in_flight`, or a push."""
    generator_idle_s: float | None = None
    """Nothing to do."""
    generator_down_s: float | None = None
    """Restarting."""
    generator_queue_mean: float | None = None
    """Requests that wait for a slot at a generator, weighted by time."""
    generator_queue_max: int | None = None
    """The most at once."""
    teacher_busy_s: float | None = None
    """As for the generators; so are the next ones."""
    teacher_waiting_s: float | None = None
    """Held back by a push, where its weights move."""
    teacher_idle_s: float | None = None
    """Nothing to do."""
    teacher_down_s: float | None = None
    """Restarting."""
    teacher_queue_mean: float | None = None
    """Requests that wait for a slot at a teacher, weighted by time."""
    teacher_queue_max: int | None = None
    """The most at once."""
    learner_busy_s: float | None = None
    """Learning, pushing or saving."""
    learner_waiting_s: float | None = None
    """For a whole batch."""
    learner_idle_s: float | None = None
    """Nothing to do."""
    learner_down_s: float | None = None
    """Restarting."""
    buffer_depth_mean: float | None = None
    """Trajectories in the buffer, weighted by time."""
    buffer_depth_max: int | None = None
    """The most at once."""
    in_flight_mean: float | None = None
    """Prompts between their draw and the buffer, weighted by time."""
    in_flight_max: int | None = None
    """The most at once."""
    num_stale_dropped: int | None = None
    """Trajectories dropped because they were older than `pipeline.max_staleness`."""
    num_refreshed: int | None = None
    """Trajectories of that kind whose prompt was answered anew."""
    num_restarts_generator: int | None = None
    """Generators that were started anew."""
    num_restarts_teacher: int | None = None
    """Teachers that were started anew."""
    num_restarts_learner: int | None = None
    """Times that the learner group was started anew."""
    num_retries: int | None = None
    """Requests that a failed actor left behind and another one was given."""

    @classmethod
    def from_lap(cls, lap: ActivityLap) -> RuntimeMetrics:
        values: dict[str, float | int | None] = {
            "buffer_depth_mean": lap.buffer.mean,
            "buffer_depth_max": lap.buffer.max,
            "in_flight_mean": lap.in_flight.mean,
            "in_flight_max": lap.in_flight.max,
            "num_stale_dropped": lap.counts[Tally.STALE_DROPPED],
            "num_refreshed": lap.counts[Tally.REFRESHED],
            "num_retries": lap.counts[Tally.RETRY],
        }
        for role in Role:
            if role not in lap.roles:
                continue
            of_role = lap.roles[role]
            values[f"num_restarts_{role}"] = of_role.num_restarts
            for state in ActorState:
                values[f"{role}_{state}_s"] = getattr(of_role, f"{state}_s")
            if role is not Role.LEARNER:
                values[f"{role}_queue_mean"] = of_role.queue.mean
                values[f"{role}_queue_max"] = of_role.queue.max
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def from_row(cls, row: Mapping[str, object]) -> RuntimeMetrics | None:
        """Of a row of metrics.jsonl; None if it has none of the keys."""
        known = {field.name: row[field.name] for field in fields(cls) if field.name in row}
        return cls(**known) if known else None  # type: ignore[arg-type]

    def share(self, role: Role, state: ActorState) -> float | None:
        """Of the step that the role's actors spent in the state; None if nothing is recorded."""
        parts = [getattr(self, f"{role}_{each}_s") for each in ActorState]
        known = [part for part in parts if part is not None]
        total = sum(known)
        part = getattr(self, f"{role}_{state}_s")
        return None if part is None or total <= 0 else float(part) / total
