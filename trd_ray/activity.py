"""What each actor is doing: busy, held back, without work, or down; and how deep the queues are.

The driver reports; the actors know nothing of it. A call costs the same however many actors there are
(`trd_ray.activity_sums` says how). Only the listing for the progress line, and the hold of a whole role
while someone listens, go through the actors.

Used from one event loop; not thread-safe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType

from trd_ray.activity_records import ActivityLap, ActivityListener, ActorState, Tally, WaitReason
from trd_ray.activity_sums import Depth, RoleSums, Watch, count_reason, stage_label
from trd_ray.roles import Role


class Serving:
    """A call of one stage is outstanding at an actor while the block runs.

    One object for all such calls of the actor: it may be entered again before it is left.
    """

    __slots__ = ("_actor", "num", "stage")

    def __init__(self, actor: ActorActivity, stage: str) -> None:
        self._actor = actor
        self.stage = stage
        self.num = 0
        """Calls that are outstanding."""

    def __enter__(self) -> None:
        self.num += 1
        if self.num == 1:
            self._actor.begin(self.stage)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.num -= 1
        if self.num == 0:
            self._actor.end(self.stage)


class ActorActivity:
    """What one actor is doing. Made by `RoleActivity.add`."""

    __slots__ = ("_num_down", "_serving", "_stages", "_sums", "_waits", "_watch", "name", "state")

    def __init__(self, watch: Watch, sums: RoleSums, name: str) -> None:
        self.name = name
        self.state = ActorState.IDLE
        """`IDLE` also while the whole role is held."""
        self._watch = watch
        self._sums = sums
        self._serving: dict[str, Serving] = {}
        self._stages: list[str] = []
        self._waits: list[WaitReason] = []
        self._num_down = 0

    def serving(self, stage: str) -> Serving:
        """See `RoleActivity.serving`."""
        try:
            return self._serving[stage]
        except KeyError:
            self._sums.stages.setdefault(stage, 0)
            self._sums.stage_sums.setdefault(stage, 0.0)
            return self._serving.setdefault(stage, Serving(self, stage))

    @contextmanager
    def waiting(self, why: WaitReason) -> Iterator[None]:
        """See `RoleActivity.waiting`."""
        self._waits.append(why)
        count_reason(self._sums.waits, why, 1)
        self._settle(self._watch.now())
        try:
            yield
        finally:
            self._waits.remove(why)
            count_reason(self._sums.waits, why, -1)
            self._settle(self._watch.now())

    @contextmanager
    def down(self) -> Iterator[None]:
        """See `RoleActivity.down`."""
        self._num_down += 1
        if self._num_down == 1:
            self._sums.num_restarts += 1
        self._settle(self._watch.now())
        try:
            yield
        finally:
            self._num_down -= 1
            self._settle(self._watch.now())

    def outstanding(self) -> Iterator[tuple[str, int]]:
        """Calls by stage."""
        return ((stage, serving.num) for stage, serving in self._serving.items() if serving.num)

    def begin(self, stage: str) -> None:
        """The first call of a stage is outstanding."""
        now = self._watch.now()
        sums = self._sums
        self._stages.append(stage)
        sums.stages[stage] += 1
        sums.stage_sums[stage] -= now - self._watch.start_at
        self._settle(now)

    def end(self, stage: str) -> None:
        """No call of a stage is outstanding any more."""
        now = self._watch.now()
        sums = self._sums
        self._stages.remove(stage)
        sums.stages[stage] -= 1
        sums.stage_sums[stage] += now - self._watch.start_at
        self._settle(now)

    def state_and_label(self) -> tuple[ActorState, str]:
        """Holds of the whole role included."""
        if self.state is ActorState.BUSY:
            return self.state, stage_label(self._stages)
        if self.state is ActorState.WAITING:
            return self.state, self._waits[0]
        return (self.state, "") if self.state is ActorState.DOWN else self._sums.free_state()

    def _settle(self, now: float) -> None:
        """Work out the state after a change, and pass it on."""
        if self._num_down:
            state = ActorState.DOWN
        elif self._stages:
            state = ActorState.BUSY
        elif self._waits:
            state = ActorState.WAITING
        else:
            state = ActorState.IDLE
        watch = self._watch
        if state is not self.state:
            self._sums.move(self.state, state, now - watch.start_at)
            self.state = state
        listener = watch.listener
        if listener is not None:
            listener.on_actor(self._sums.role, self.name, *self.state_and_label(), now)
            of_role = self._sums.state()
            if of_role != self._sums.told:
                self._sums.told = of_role
                listener.on_actor(self._sums.role, None, *of_role, now)


class RoleActivity:
    """Watches the actors of a run.

    >>> activity = RoleActivity()
    >>> actor = activity.add("generator-0", Role.GENERATOR)
    >>> with actor.serving(Stage.ROLLOUT):  # or activity.serving("generator-0", Stage.ROLLOUT)
    ...     pass
    >>> lap = activity.lap(learner_step=1)  # ends this step and starts the next
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """`now` gives seconds and never goes back. The first step starts at once."""
        self._watch = Watch(now)
        self.buffer = Depth(self._watch, "buffer")
        """Trajectories in the buffer."""
        self.in_flight = Depth(self._watch, "in_flight")
        """Prompts between their draw and the buffer."""
        self._queues = {role: Depth(self._watch, f"{role}_queue") for role in Role}
        self._roles = {role: RoleSums(role, self._queues[role]) for role in Role}
        self._actors: dict[str, ActorActivity] = {}
        self._of_role: dict[Role, list[ActorActivity]] = {role: [] for role in Role}
        self._counts = dict.fromkeys(Tally, 0)

    def add(self, name: str, role: Role) -> ActorActivity:
        """Watch an actor; it counts as idle since the start of the step. ValueError if it is there."""
        if name in self._actors:
            raise ValueError(f"RoleActivity.add: {name!r} is watched already; expected a new name")
        sums = self._roles[role]
        actor = ActorActivity(self._watch, sums, name)
        sums.add_actor()
        self._actors[name] = actor
        self._of_role[role].append(actor)
        self._tell(role, [actor], self._watch.now())
        return actor

    def actor(self, name: str) -> ActorActivity:
        """One that was added; ValueError otherwise."""
        try:
            return self._actors[name]
        except KeyError:
            raise ValueError(
                f"RoleActivity: no actor {name!r}; expected one of {sorted(self._actors)}"
            ) from None

    def serving(self, name: str, stage: str) -> Serving:
        """A call of `stage` is outstanding at the actor while the block runs.

        Args:
            stage: a `Stage`, or another word for what is no stage of a step, such as `checkpoint`.
        """
        return self.actor(name).serving(stage)

    @contextmanager
    def serving_all(self, role: Role, stage: str) -> Iterator[None]:
        """The same for every actor of a role, as in a push of weights."""
        with ExitStack() as stack:
            for actor in self._of_role[role]:
                stack.enter_context(actor.serving(stage))
            yield

    def waiting(self, name: str, why: WaitReason) -> AbstractContextManager[None]:
        """The actor is held back while the block runs; it counts as waiting while no call is outstanding."""
        return self.actor(name).waiting(why)

    def down(self, name: str) -> AbstractContextManager[None]:
        """The actor is being restarted while the block runs; counts as one restart."""
        self.mark("restart", name)
        return self.actor(name).down()

    @contextmanager
    def holding(self, role: Role, why: WaitReason) -> Iterator[None]:
        """All actors of a role are held back while the block runs: those without a call count as waiting.

        May be entered more than once; the reason that came first is shown.
        """
        self._hold(role, why, 1)
        try:
            yield
        finally:
            self._hold(role, why, -1)

    def queue(self, role: Role) -> Depth:
        """Requests that wait for a slot at one of the role's actors."""
        return self._queues[role]

    def count(self, tally: Tally, num: int = 1) -> None:
        """`num` more of it happened in this step."""
        self._counts[tally] += num

    def mark(self, name: str, detail: str = "") -> None:
        """Tell the listener of an instant: a `push`, a `checkpoint`."""
        if self._watch.listener is not None:
            self._watch.listener.on_mark(name, detail, self._watch.now())

    def outstanding(self) -> dict[str, int]:
        """Calls now by stage, over all actors. Goes through the actors: for people, not for each call."""
        calls: dict[str, int] = {}
        for actor in self._actors.values():
            for stage, num in actor.outstanding():
                calls[stage] = calls.get(stage, 0) + num
        return calls

    def listen(self, listener: ActivityListener) -> None:
        """Tell `listener` of every change, beginning with how things are now."""
        self._watch.listener = listener
        now = self._watch.now()
        for role, actors in self._of_role.items():
            self._tell(role, actors, now)
        for depth in (*self._queues.values(), self.buffer, self.in_flight):
            listener.on_depth(depth.name, depth.value, now)

    def start(self) -> None:
        """Start a step anew and forget what was measured since the last one, such as an evaluation."""
        self._close(self._watch.now())

    def lap(self, *, learner_step: int) -> ActivityLap:
        """End a step and start the next one. What lasts beyond it is split between both."""
        now = self._watch.now()
        step_s = now - self._watch.start_at
        counts = dict(self._counts)
        roles = {role: sums.lap(step_s) for role, sums in self._roles.items() if sums.num_actors}
        lap = ActivityLap(
            learner_step=learner_step,
            step_s=step_s,
            roles=roles,
            buffer=self.buffer.lap(step_s),
            in_flight=self.in_flight.lap(step_s),
            counts=counts,
        )
        self._close(now)
        if self._watch.listener is not None:
            self._watch.listener.on_lap(lap, now)
        return lap

    def _close(self, now: float) -> None:
        """The next step begins where the last one ended: no instant is lost between them."""
        for sums in self._roles.values():
            sums.restart()
        for depth in (*self._queues.values(), self.buffer, self.in_flight):
            depth.restart()
        self._counts = dict.fromkeys(Tally, 0)
        self._watch.start_at = now

    def _hold(self, role: Role, why: WaitReason, change: int) -> None:
        now = self._watch.now()
        sums = self._roles[role]
        if sums.hold(why, change, now - self._watch.start_at) and self._watch.listener is not None:
            # The others are as they were.
            self._tell(role, [a for a in self._of_role[role] if a.state is ActorState.IDLE], now)

    def _tell(self, role: Role, actors: Sequence[ActorActivity], now: float) -> None:
        """Tell the listener, if there is one, of a role and these actors of it."""
        listener, sums = self._watch.listener, self._roles[role]
        if listener is None or not sums.num_actors:
            return
        sums.told = sums.state()
        listener.on_actor(role, None, *sums.told, now)
        for actor in actors:
            listener.on_actor(role, actor.name, *actor.state_and_label(), now)
