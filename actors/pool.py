"""A group of engines that serve the same requests, and outlive the death of any of them.

A request goes to the member with the least to do. If that one dies, hangs or answers nonsense, the request
goes to another, and the member is replaced in the background: the old process is killed, a new one started,
and it serves once it has the weights that the others have. Replacements are bounded; after the last one the
error that led to it ends the run. One that no node has room for waits, and the run goes on with the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from ray.exceptions import RayTaskError

from actors.calls import call
from actors.engine import EngineFailedError
from actors.members import Life, Member, NamedActor, kill, locate
from actors.pool_errors import broken_start, gave_up, nonsense, too_many, too_slow
from actors.pool_limits import PoolLimits
from trd_ray.activity import RoleActivity
from trd_ray.activity_records import Tally
from trd_ray.balancer import Balancer
from trd_ray.config import FaultConfig
from trd_ray.errors import (
    ActorLostError,
    ActorTimeoutError,
    LearnerLostError,
    TrdRayError,
    WeightSyncError,
    brief,
)
from trd_ray.outcomes import RejectReason
from trd_ray.roles import Role

log = logging.getLogger(__name__)

_PLACE_REPORT_S = 30.0


class EnginePool:
    """Owns the members of one role, and the tasks that watch and replace them."""

    def __init__(
        self,
        role: str,
        actors: Sequence[NamedActor],
        *,
        create: Callable[[int], NamedActor],
        limits: PoolLimits,
        faults: FaultConfig,
        activity: RoleActivity,
    ) -> None:
        """
        Args:
            role: a `Role`, by its name.
            create: makes the actor of an index anew; called after the old one is killed.
            activity: is told what each member does.
        """
        if not actors:
            raise ValueError(f"EnginePool {role}: got no actors; expected one or more")
        self.role = role
        self.num_restarts = 0
        self._limits = limits
        self._faults = faults
        self._create = create
        self._catch_up: Callable[[], Awaitable[None]] | None = None
        self._members = [Member(index=i, actor=actor) for i, actor in enumerate(actors)]
        self._balancer = Balancer(num_slots=limits.num_slots)
        self._activity = activity
        self._queue = activity.queue(Role(role))
        # A replacement goes on under the name of its place.
        self._watched = [activity.add(actor.name, Role(role)) for actor in actors]
        for member in self._members:
            self._balancer.add(member.index)
        self._replacing: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._came_up = asyncio.Event()
        self._not_pushing = asyncio.Event()
        self._not_pushing.set()

    def follow_weights(self, catch_up: Callable[[], Awaitable[None]]) -> None:
        """From now on a replacement serves only after `catch_up` has brought it the weights."""
        self._catch_up = catch_up

    @property
    def actors(self) -> tuple[NamedActor, ...]:
        """Those that are in its places now."""
        return tuple(member.actor for member in self._members)

    @property
    def up(self) -> tuple[Member, ...]:
        """Members whose process is up: those that serve, and replacements that wait for weights."""
        return tuple(member for member in self._members if member.is_up)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._balancer.num_waiting

    @property
    def all_serve(self) -> bool:
        """No member that is up lacks weights."""
        return all(member.serves for member in self.up)

    async def some_member_up(self, *, timeout_s: float) -> None:
        """Wait until a member's process is up.

        Raises `RunFailedError` if none will be any more, `ActorTimeoutError` after `timeout_s` seconds.
        """
        start = time.monotonic()
        while not self.up:
            if self._failure is not None:
                raise self._failure
            self._came_up.clear()
            try:
                await asyncio.wait_for(self._came_up.wait(), timeout_s)
            except TimeoutError as error:
                raise too_slow(self._members[0], time.monotonic() - start, limit_s=timeout_s) from error

    async def start(self) -> None:
        """Wait until every member serves; once, before the first request. Raises as `call` does."""
        await asyncio.gather(*(self._start(member) for member in self._members))

    async def _start(self, member: Member) -> None:
        actor, limit_s = member.actor, self._limits.start_s
        await locate(actor, timeout_s=limit_s)
        try:
            await call(actor.handle.start.remote(), actor=actor.name, method="start", timeout_s=limit_s)
        except RayTaskError as error:
            if isinstance(error, TrdRayError):
                raise  # says itself what is wrong and what to do
            raise broken_start(member, error) from error

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Ask every member from time to time whether it is well, while the block runs; ends all tasks."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            for task in (watching, *self._replacing):
                task.cancel()
            await asyncio.wait({watching, *self._replacing})

    async def request(
        self,
        method: str,
        send: Callable[[Any], Any],
        *,
        stage: str,
        num_tokens: int,
        fault: Callable[[Any], RejectReason] | None = None,
    ) -> Any:  # noqa: ANN401 - what a handle's method returns is known to whoever sends it
        """The answer of some member.

        Args:
            send: starts the call on an actor's handle; called once an attempt.
            stage: what the members are busy with meanwhile.
            num_tokens: about as many as the request costs.
            fault: what is wrong with an answer; one that is still wrong at the last attempt is returned.

        Raises what ended the last attempt, or the reason why there is no member left.
        """
        num_left = self._faults.max_attempts
        while True:
            with self._queue:
                member = self._members[await self._balancer.acquire(num_tokens)]
            life = member.life
            try:
                with self._watched[member.index].serving(stage):
                    answer = await self._call(member, method, send)
            except Exception as error:
                if not await self._blame(member, error, life=life):
                    continue
                num_left -= 1
                if not num_left:
                    raise gave_up(member, method, error, num_attempts=self._faults.max_attempts) from error
            else:
                wrong = RejectReason.NONE if fault is None else fault(answer)
                if wrong is RejectReason.NONE:
                    member.num_nonsense = 0
                    return answer
                self._note_nonsense(member, nonsense(member, method, wrong))
                num_left -= 1
                if not num_left:
                    return answer
            finally:
                # What a former actor of this place held is forgotten already.
                if life.number == member.life.number:
                    self._balancer.release(member.index, num_tokens)
            self._activity.count(Tally.RETRY)

    async def _call(self, member: Member, method: str, send: Callable[[Any], Any]) -> Any:  # noqa: ANN401
        """One attempt. `lose` cancels the calling task to end it, which is turned into an error here."""
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in one
        ref = send(member.actor.handle)
        member.calls.add(task)
        try:
            return await call(ref, actor=member.actor.name, method=method, timeout_s=self._limits.request_s)
        except asyncio.CancelledError:
            if task in member.calls or task.uncancel():
                raise  # it is the caller that is cancelled
            raise ActorLostError(str(member.lost_because)) from member.lost_because
        finally:
            member.calls.discard(task)

    async def _blame(self, member: Member, error: Exception, *, life: Life) -> bool:
        """What an attempt's error says about its member; False if it says nothing about the attempt, which a
        push of weights has ended. Raises it if the request is at fault."""
        if life.number != member.life.number:
            return True  # the actor is gone already
        if isinstance(error, ActorLostError | ActorTimeoutError):
            self.lose(member, error)
        elif isinstance(error, EngineFailedError):
            # An engine that cannot serve has died, unless a push of weights has ended its requests.
            await self._not_pushing.wait()
            if self._failure is not None:
                raise self._failure
            if member.life != life:
                return False
            self.lose(member, error)
        elif isinstance(error, TrdRayError | ValueError):
            raise error  # the request is at fault, at every member
        else:
            self._note_nonsense(member, error)
        return True

    def _note_nonsense(self, member: Member, error: Exception) -> None:
        member.num_nonsense += 1
        log.warning("%s: %s", member.actor.name, brief(error))
        if member.num_nonsense >= self._faults.max_nonsense:
            self.lose(member, error)

    @asynccontextmanager
    async def pushing(self) -> AsyncIterator[None]:
        """Weights are pushed to the members while the block runs.

        One that ends with the loss of the learner is not over: engines that got a part of it cannot serve,
        and are not to blame for it. They get the whole when the learner is there again.
        """
        self._not_pushing.clear()
        is_over = True
        try:
            yield
        except LearnerLostError:
            is_over = False
            raise
        finally:
            if is_over:
                for member in self._members:
                    member.life = replace(member.life, num_pushes=member.life.num_pushes + 1)
                self._not_pushing.set()

    def has_weights(self, actors: Mapping[Member, NamedActor]) -> None:
        """These actors hold what the learner sent: replacements among them serve from now on."""
        for member, actor in actors.items():
            if member.is_up and not member.serves and member.actor is actor:
                member.serves = True
                self._balancer.add(member.index)

    def lose(self, member: Member, error: Exception, *, actor: NamedActor | None = None) -> None:
        """A member is dead or as good as dead: its requests go elsewhere, and it is replaced.

        Args:
            actor: whom the error is of; nothing is done if another one has taken its place since.
        """
        if not member.is_up or (actor is not None and member.actor is not actor):
            return
        member.is_up = member.serves = False
        member.lost_because = error
        self._balancer.remove(member.index)
        while member.calls:
            member.calls.pop().cancel()
        self._replace_or_fail(member, error)

    def _replace_or_fail(self, member: Member, error: Exception) -> None:
        if self.num_restarts >= self._faults.max_restarts:
            most = self._faults.max_restarts
            self._fail(too_many(self.role, member, error, num_restarts=self.num_restarts, most=most))
            return
        self.num_restarts += 1
        log.warning(
            "%s is replaced (%d of %d): %s",
            member.actor.name,
            self.num_restarts,
            self._faults.max_restarts,
            brief(error),
        )
        task = asyncio.create_task(self._replace(member))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    def _fail(self, error: Exception) -> None:
        """No member will come back: whoever waits for one gets the error."""
        self._failure = error
        self._balancer.close(error)
        self._came_up.set()
        self._not_pushing.set()

    async def _replace(self, member: Member) -> None:
        start = time.monotonic()
        with self._activity.down(self._watched[member.index].name):
            if await self._bring_up(member) and await self._give_weights(member):
                log.warning("%s serves again after %.1f s", member.actor.name, time.monotonic() - start)

    async def _bring_up(self, member: Member) -> bool:
        """Whether a new actor is up in the member's place."""
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.replace_s) as limit:
                await kill(member.actor)
                member.actor = self._create(member.index)
                await self._find_place(member.actor, limit)
                await self._start(member)
        except TrdRayError as error:
            self._replace_or_fail(member, error)
        except TimeoutError:
            elapsed_s = time.monotonic() - start
            self._replace_or_fail(member, too_slow(member, elapsed_s, limit_s=self._limits.replace_s))
        except Exception as error:  # noqa: BLE001 - nobody awaits this task: whoever waits for a member gets it
            self._fail(error)
        else:
            member.reborn()
            self._came_up.set()
            return True
        return False

    async def _give_weights(self, member: Member) -> bool:
        """Whether a new actor has the weights of the others. Has no limit of its own: every wait within has
        one, and the learner may have to be brought back first."""
        actor = member.actor
        if self._catch_up is None:
            self.has_weights({member: actor})
            return True
        try:
            await self._catch_up()
        except (ActorLostError, ActorTimeoutError, WeightSyncError) as error:
            self.lose(member, error, actor=actor)
        except Exception as error:  # noqa: BLE001 - likewise: the learner cannot be had, and no engine can help
            self._fail(error)
        else:
            return True
        return False

    async def _find_place(self, actor: NamedActor, limit: asyncio.Timeout) -> None:
        """Wait until the actor's process runs; `limit` starts anew as long as another member is up.

        Raises `ActorTimeoutError` if none has been for `start_s` seconds.
        """
        clock = asyncio.get_running_loop().time
        alone_since = clock()
        actor.has_place, told = False, False
        while not actor.has_place:
            try:
                await locate(actor, timeout_s=min(_PLACE_REPORT_S, self._limits.start_s))
            except ActorTimeoutError:
                if self.up:
                    alone_since = clock()
                    limit.reschedule(alone_since + self._limits.replace_s)
                elif clock() - alone_since >= self._limits.start_s:
                    raise
                if not told:
                    log.warning(
                        "%s waits for a node with room; of %d %ss %d go on",
                        actor.name,
                        len(self._members),
                        self.role,
                        len(self.up),
                    )
                told = True
            else:
                actor.has_place = True

    async def _watch(self) -> None:
        """Consumes: time. Produces: lost members. Waits for: their answers, each within its limit."""
        while True:
            await asyncio.sleep(self._faults.heartbeat_s)
            await asyncio.gather(*(self._ping(member) for member in self._members if member.serves))

    async def _ping(self, member: Member) -> None:
        life = member.life
        if not self._not_pushing.is_set():
            return  # a push has limits of its own, and its end says who is to blame
        try:
            await call(
                member.actor.handle.ping.remote(),
                actor=member.actor.name,
                method="ping",
                timeout_s=self._faults.heartbeat_timeout_s,
            )
        except Exception as error:  # noqa: BLE001 - whatever an engine raises costs an attempt; see _blame
            await self._blame(member, error, life=life)
