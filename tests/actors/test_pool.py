"""A pool on a real local Ray: its members die, hang, raise and answer nonsense; the requests survive."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import ray

from actors.engine import EngineFailedError
from actors.handles import RayGenerators
from actors.members import Locatable, NamedActor, locate
from actors.pool import EnginePool
from actors.pool_limits import PoolLimits
from tests.fakes import completion
from trd_ray.activity import RoleActivity
from trd_ray.activity_records import Tally
from trd_ray.config import FaultConfig, SamplingConfig
from trd_ray.errors import ActorLostError, LearnerLostError, RunFailedError
from trd_ray.types import Completion, Problem, Prompt

pytestmark = pytest.mark.usefixtures("cluster")

SAMPLING = SamplingConfig(max_tokens=8)


class Engine(Locatable):
    """Answers with its own name, and behaves as it is told."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._mood = "well"
        self._go_on = asyncio.Event()

    async def start(self) -> None:
        if self._name.startswith("unfit"):
            raise MemoryError("no room for the weights\nand more")

    async def ping(self) -> None:
        if self._mood == "failed":
            raise EngineFailedError("its core died")

    def behave(self, mood: str) -> None:
        self._mood = mood

    async def generate(self, prompt_ids, sampling, request_id) -> Completion:
        if self._mood == "waits":
            await self._go_on.wait()
        if self._mood == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._mood == "failed":
            raise EngineFailedError("its core died")
        if self._mood == "raises":
            raise OSError("strange")
        if self._mood == "refuses":
            raise ValueError("the prompt is too long")
        made = completion(self._name)
        if self._mood == "nan":
            return completion(self._name, logprob=float("nan"))
        if self._mood == "too_long":
            return completion(self._name * 9)
        return made


EngineActor = ray.remote(num_cpus=0)(Engine)


class Rig:
    def __init__(
        self,
        *,
        num: int = 2,
        name: str = "g",
        request_s: float = 30,
        start_s: float = 60,
        replace_s: float = 60,
        **faults: float,
    ) -> None:
        self.created: list[int] = []
        self.nowhere = False
        """No node has room for a replacement."""
        self.name_again = "new"
        self.activity = RoleActivity()
        self.pool = EnginePool(
            "generator",
            [self.make(f"{name}{i}") for i in range(num)],
            create=self.again,
            limits=PoolLimits(request_s=request_s, start_s=start_s, replace_s=replace_s, num_slots=4),
            faults=FaultConfig(**{"heartbeat_s": 0.2, "heartbeat_timeout_s": 10.0, **faults}),
            activity=self.activity,
        )
        self.generators = RayGenerators(self.pool)

    @asynccontextmanager
    async def running(self, *, start_s: float | None = None) -> AsyncIterator[None]:
        """`start_s`: for the first start alone, where that of the pool is too short."""
        for actor in self.pool.actors if start_s is not None else ():
            await locate(actor, timeout_s=start_s)
        await self.pool.start()
        async with self.pool.watched():
            yield

    def make(self, name: str) -> NamedActor:
        options = {"resources": {"nowhere": 1}} if self.created and self.nowhere else {}
        return NamedActor(name=name, handle=EngineActor.options(**options).remote(name))

    def again(self, index: int) -> NamedActor:
        self.created.append(index)
        return self.make(f"{self.name_again}{index}")

    async def behave(self, index: int, mood: str) -> None:
        await self.pool.actors[index].handle.behave.remote(mood)

    def retries(self) -> int:
        return self.activity.lap(learner_step=1).counts[Tally.RETRY]

    async def ask(self, num: int = 1) -> list[str]:
        prompts = [prompt(i) for i in range(num)]
        done = await asyncio.gather(*(self.generators.generate(p, SAMPLING) for p in prompts))
        return [c.text for c in done]

    async def until_served(self, num: int) -> None:
        async with asyncio.timeout(30):
            while sum(m.serves for m in self.pool.up) < num:
                await asyncio.sleep(0.02)


def prompt(index: int) -> Prompt:
    return Prompt(
        problem=Problem(prompt_id=str(index), problem="p", answer="a"),
        epoch=0,
        sample_index=0,
        token_ids=np.asarray([1, 2], dtype=np.int32),
        seed=index,
    )


async def test_requests_of_an_engine_that_dies_go_to_another_and_it_is_replaced():
    rig = Rig()
    async with rig.running():
        await rig.behave(0, "dies")
        assert await rig.ask(6) == ["g1"] * 6
        await rig.until_served(2)
        assert set(await rig.ask(8)) == {"g1", "new0"}
    assert (rig.created, rig.pool.num_restarts) == ([0], 1)
    assert rig.retries() >= 1


async def test_the_only_engine_may_die_too():
    rig = Rig(num=1)
    async with rig.running():
        await rig.behave(0, "dies")
        assert await rig.ask(3) == ["new0"] * 3


@pytest.mark.parametrize("stop_by", ["request", "heartbeat"])
async def test_a_stopped_process_loses_its_requests_within_the_limit(stop_by: str):
    limits = {"heartbeat_timeout_s": 1.0} if stop_by == "heartbeat" else {"heartbeat_s": 1000.0}
    rig = Rig(num=1, request_s=1000 if stop_by == "heartbeat" else 1, **limits)
    async with rig.running():
        process = rig.pool.actors[0].process
        assert process is not None
        pid = process.pid
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        assert await rig.ask(2) == ["new0"] * 2
        assert time.monotonic() - start < 25
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_an_engine_whose_core_died_is_replaced():
    rig = Rig(num=1)
    async with rig.running():
        await rig.behave(0, "failed")
        assert await rig.ask() == ["new0"]


async def test_a_failed_engine_is_not_blamed_where_a_push_ended_its_requests():
    rig = Rig(num=1)
    async with rig.running():
        await rig.behave(0, "failed")
        async with rig.pool.pushing():
            asking = asyncio.create_task(rig.ask())
            await asyncio.sleep(0.5)
            assert not asking.done()
            await rig.behave(0, "well")
        assert await asking == ["g0"]
    assert rig.created == []


async def test_engines_are_not_blamed_for_a_push_that_the_learner_left_halfway():
    rig = Rig(num=1)
    async with rig.running():
        with pytest.raises(LearnerLostError):
            async with rig.pool.pushing():
                await rig.behave(0, "failed")
                raise LearnerLostError("the learner died")
        asking = asyncio.create_task(rig.ask())
        # Several heartbeats, while the learner is started anew.
        await asyncio.sleep(1.0)
        assert not asking.done() and rig.created == []
        async with rig.pool.pushing():
            await rig.behave(0, "well")
        assert await asking == ["g0"]
    assert rig.created == []


@pytest.mark.parametrize("mood", ["nan", "too_long", "raises"])
async def test_nonsense_is_asked_for_elsewhere_and_its_source_is_replaced_when_it_goes_on(mood: str):
    rig = Rig(max_nonsense=2)
    async with rig.running():
        await rig.behave(0, mood)
        assert await rig.ask(1) == ["g1"]
        assert rig.created == [], "once may happen"
        assert await rig.ask(8) == ["g1"] * 8
        await rig.until_served(2)
    assert rig.created == [0]


async def test_what_is_nonsense_everywhere_is_given_back_for_the_pipeline_to_reject():
    rig = Rig(max_attempts=2, max_nonsense=9)
    async with rig.running():
        for index in range(2):
            await rig.behave(index, "nan")
        made = await rig.generators.generate(prompt(0), SAMPLING)
    assert np.isnan(made.logprobs).all()
    assert rig.created == []


async def test_a_request_that_every_engine_refuses_is_raised_at_once_and_nobody_is_blamed():
    rig = Rig(num=1)
    async with rig.running():
        await rig.behave(0, "refuses")
        with pytest.raises(ValueError, match="too long"):
            await rig.ask()
    assert (rig.created, rig.retries()) == ([], 0)


async def test_restarts_are_bounded_and_the_last_error_names_the_engine_and_its_end():
    rig = Rig(num=1, max_restarts=1, max_attempts=9)
    async with rig.running():
        await rig.behave(0, "dies")
        waiting = asyncio.create_task(rig.ask(2))
        await rig.until_served(1)
        await asyncio.gather(waiting)
        await rig.behave(0, "dies")
        with pytest.raises(RunFailedError, match=r"(?s)generator failed once more.*new0.*1 restarts.*died"):
            await rig.ask(1)
        with pytest.raises(RunFailedError, match="once more"):
            await asyncio.wait_for(rig.ask(1), 5)


async def test_an_engine_whose_start_raises_is_named_with_what_it_raised():
    rig = Rig(num=1, name="unfit")
    expected = r"(?s)cannot start.*unfit0\.start.*MemoryError: no room for the weights\n.*log of unfit0"
    with pytest.raises(ActorLostError, match=expected):
        await rig.pool.start()


async def test_a_replacement_whose_start_raises_is_a_restart_more():
    rig = Rig(num=1, max_restarts=2)
    rig.name_again = "unfit"
    async with rig.running():
        await rig.behave(0, "dies")
        with pytest.raises(RunFailedError, match=r"(?s)once more.*2 restarts.*MemoryError"):
            await rig.ask(1)
    assert rig.created == [0, 0]


async def test_a_replacement_serves_only_when_it_has_the_weights():
    rig = Rig()
    may_catch_up = asyncio.Event()

    async def catch_up() -> None:
        await may_catch_up.wait()
        rig.pool.has_weights({member: member.actor for member in rig.pool.up})

    rig.pool.follow_weights(catch_up)
    async with rig.running():
        await rig.behave(0, "dies")
        await rig.ask(4)
        async with asyncio.timeout(30):
            while len(rig.pool.up) < 2:
                await asyncio.sleep(0.02)
        assert await rig.ask(6) == ["g1"] * 6
        assert not rig.pool.all_serve
        may_catch_up.set()
        await rig.until_served(2)
        assert "new0" in await rig.ask(8)


async def test_a_caller_that_gives_up_is_not_taken_for_a_lost_engine():
    rig = Rig(num=1)
    async with rig.running():
        await rig.behave(0, "waits")
        asking = asyncio.create_task(rig.ask())
        await asyncio.sleep(0.3)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert rig.created == []


async def test_a_replacement_that_no_node_has_room_for_ends_nothing_while_another_engine_serves(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("actors.pool._PLACE_REPORT_S", 0.3)
    rig = Rig(start_s=3, replace_s=3, max_restarts=1)
    rig.nowhere = True
    async with rig.running(start_s=60):
        await rig.behave(0, "dies")
        assert await rig.ask(4) == ["g1"] * 4
        async with asyncio.timeout(30):
            while rig.pool.actors[0].has_place:
                await asyncio.sleep(0.02)
        await asyncio.sleep(7)
        assert await rig.ask(4) == ["g1"] * 4
        assert rig.created == [0], "it waits, and is not started again and again"


async def test_it_ends_the_run_where_no_other_engine_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("actors.pool._PLACE_REPORT_S", 0.3)
    rig = Rig(num=1, start_s=3, max_restarts=1)
    rig.nowhere = True
    async with rig.running(start_s=60):
        await rig.behave(0, "dies")
        with pytest.raises(RunFailedError, match=r"(?s)once more.*whereabouts"):
            await asyncio.wait_for(rig.ask(1), 60)
