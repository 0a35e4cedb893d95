"""The sums of `trd_ray.activity`: one place's depth, one role's seconds by state.

With t the instants, since the start of the step, at which an actor enters or leaves a state, n the actors
in it at the end, and T the length of the step, all actors of the role together spend in that state

    sum of t (leaving) - sum of t (entering) + n T    seconds,

so that nothing needs to be done for actors that did not change. Depths likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType

from trd_ray.activity_records import ActivityListener, ActorState, DepthLap, RoleLap, WaitReason
from trd_ray.roles import Role
from trd_ray.stage_clock import Stage

_ORDER = {stage.value: i for i, stage in enumerate(Stage)}


def stage_label(stages: Iterable[str]) -> str:
    """`refine+score`: in the order of a step, other words after the stages."""
    names = list(stages)
    if len(names) == 1:
        return names[0]
    return "+".join(sorted(names, key=lambda stage: (_ORDER.get(stage, len(_ORDER)), stage)))


def count_reason(reasons: dict[WaitReason, int], why: WaitReason, change: int) -> None:
    """Add to a count that is there only while it is not 0; the reasons stay in order of arrival."""
    left = reasons.get(why, 0) + change
    if left:
        reasons[why] = left
    else:
        del reasons[why]


class Watch:
    """The clock of an activity, and who listens to it."""

    __slots__ = ("listener", "now", "start_at")

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.start_at = now()
        """The start of the step, on that clock."""
        self.listener: ActivityListener | None = None


class Depth:
    """How many things are in one place, as a mean over time and a maximum. Made by `RoleActivity`."""

    __slots__ = ("_max", "_sum", "_watch", "name", "value")

    def __init__(self, watch: Watch, name: str) -> None:
        self.name = name
        self.value = 0
        """Things there now; changed by `set`, `enter` and `leave` alone."""
        self._watch = watch
        self._sum = 0.0
        self._max = 0

    def enter(self) -> None:
        """One more."""
        self.set(self.value + 1)

    def leave(self) -> None:
        """One less."""
        self.set(self.value - 1)

    def __enter__(self) -> None:
        self.set(self.value + 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.set(self.value - 1)

    def set(self, value: int) -> None:
        """As many as `value` from now on. Raises ValueError if that is negative."""
        if value < 0:
            raise ValueError(f"{self.name} depth: got {value}; expected 0 or more: something left twice")
        watch = self._watch
        now = watch.now()
        self._sum -= (value - self.value) * (now - watch.start_at)
        self.value = value
        if value > self._max:
            self._max = value
        if watch.listener is not None:
            watch.listener.on_depth(self.name, value, now)

    def restart(self) -> None:
        """Begin a step."""
        self._sum = 0.0
        self._max = self.value

    def lap(self, step_s: float) -> DepthLap:
        """The step's record."""
        if step_s <= 0:
            return DepthLap(mean=float(self.value), max=self._max)
        # Rounding may leave a little less than nothing.
        return DepthLap(mean=max(0.0, self._sum / step_s + self.value), max=self._max)


class RoleSums:
    """One role's actors by state, and the integrals of their numbers since the start of the step.

    An actor that is neither busy, nor down, nor held itself is free: idle, or waiting while the whole
    role is held, for which the free ones have a second integral.
    """

    __slots__ = (
        "held_sum", "holds", "num", "num_actors", "num_restarts", "queue", "role", "stage_sums", "stages",
        "sums", "told", "waits",
    )  # fmt: skip

    def __init__(self, role: Role, queue: Depth) -> None:
        self.role = role
        self.queue = queue
        self.num_actors = 0
        self.num = dict.fromkeys(ActorState, 0)
        """Actors by state; `IDLE` counts the free ones."""
        self.stages: dict[str, int] = {}
        """Actors with a call of the stage outstanding."""
        self.holds: dict[WaitReason, int] = {}
        """Holds of the whole role."""
        self.waits: dict[WaitReason, int] = {}
        """Holds of single actors."""
        self.told: tuple[ActorState, str] | None = None
        """What the listener was told of the role last."""
        self.restart()

    def restart(self) -> None:
        """Begin a step."""
        self.sums = dict.fromkeys(ActorState, 0.0)
        self.held_sum = 0.0
        self.stage_sums = dict.fromkeys(self.stages, 0.0)
        self.num_restarts = 0

    def add_actor(self) -> None:
        """One more, idle since the start of the step."""
        self.num_actors += 1
        self.num[ActorState.IDLE] += 1

    def move(self, old: ActorState, new: ActorState, t: float) -> None:
        """One actor changes its state, `t` seconds after the start of the step."""
        num, sums = self.num, self.sums
        num[old] -= 1
        num[new] += 1
        sums[old] += t
        sums[new] -= t
        if self.holds:
            if old is ActorState.IDLE:
                self.held_sum += t
            if new is ActorState.IDLE:
                self.held_sum -= t

    def hold(self, why: WaitReason, change: int, t: float) -> bool:
        """One hold more or less; whether that changes why free actors wait."""
        was_held = bool(self.holds)
        before = next(iter(self.holds), None)
        count_reason(self.holds, why, change)
        if was_held != bool(self.holds):
            self.held_sum -= change * self.num[ActorState.IDLE] * t
        return next(iter(self.holds), None) is not before

    def free_state(self) -> tuple[ActorState, str]:
        """Of the free actors, and the reason if they wait."""
        if self.holds:
            return ActorState.WAITING, next(iter(self.holds))
        return ActorState.IDLE, ""

    def state(self) -> tuple[ActorState, str]:
        """Of the role as a whole, and its label."""
        num = self.num
        if num[ActorState.BUSY]:
            return ActorState.BUSY, stage_label(stage for stage, n in self.stages.items() if n)
        if num[ActorState.DOWN] == self.num_actors:
            return ActorState.DOWN, ""
        if num[ActorState.WAITING] and not self.holds:
            return ActorState.WAITING, next(iter(self.waits))
        return self.free_state()

    def lap(self, step_s: float) -> RoleLap:
        """The step's record; the sums begin anew."""
        total = {state: self.sums[state] + n * step_s for state, n in self.num.items()}
        held = self.held_sum + (self.num[ActorState.IDLE] * step_s if self.holds else 0.0)
        by_stage = {stage: self.stage_sums[stage] + n * step_s for stage, n in self.stages.items()}
        # Rounding may leave a little less than nothing.
        mean = {name: max(0.0, seconds / self.num_actors) for name, seconds in by_stage.items()}
        lap = RoleLap(
            num_actors=self.num_actors,
            busy_s=max(0.0, total[ActorState.BUSY] / self.num_actors),
            waiting_s=max(0.0, (total[ActorState.WAITING] + held) / self.num_actors),
            idle_s=max(0.0, (total[ActorState.IDLE] - held) / self.num_actors),
            down_s=max(0.0, total[ActorState.DOWN] / self.num_actors),
            busy_by_stage_s=mean,
            num_restarts=self.num_restarts,
            queue=self.queue.lap(step_s),
        )
        self.restart()
        return lap
