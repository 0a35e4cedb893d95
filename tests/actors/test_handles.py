"""Remote calls, load balancing and placement on a real local Ray with actors that only answer."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
from ray.exceptions import TaskCancelledError

from actors.calls import call, call_all
from actors.handles import RayGenerators, RayTeachers, sampling_options
from actors.members import NamedActor
from actors.placement import reserve
from actors.pool import EnginePool
from actors.pool_limits import PoolLimits
from tests.fakes import completion
from trd_ray.activity import RoleActivity
from trd_ray.config import (
    FaultConfig,
    GeneratorConfig,
    ResourceConfig,
    SamplingConfig,
    TrdConfig,
)
from trd_ray.errors import ActorTimeoutError, PlacementError, RunFailedError
from trd_ray.placement_plan import generator_plan
from trd_ray.types import Problem, Prompt, TeacherCompletion, TeacherHidden

pytestmark = pytest.mark.usefixtures("cluster")


class Answering:
    """Stands for an engine: answers, waits, raises, or dies."""

    async def generate(self, prompt_ids, sampling, request_id, top_k=None):
        if top_k is not None:
            made = completion(f"{request_id} {len(prompt_ids)} {sampling.seed} {top_k}")
            return TeacherCompletion(completion=made)
        return completion(f"{request_id}:{sampling.max_tokens}:{len(prompt_ids)}")

    async def score(self, context_ids, token_ids):
        return TeacherHidden(hidden=np.full((len(token_ids), 2), len(context_ids), dtype=np.float32))

    async def token_logprobs(self, context_ids, token_ids):
        return np.full(len(token_ids), -float(len(context_ids)), dtype=np.float32)

    async def verify(self, context_ids, draft_ids, top_k, temperature, seed):
        return (len(context_ids), len(draft_ids), top_k, temperature, seed)

    async def hang(self):
        await asyncio.sleep(3600)

    async def fail(self):
        raise RunFailedError("what went wrong")

    async def time_out_inside(self):
        raise TimeoutError("its own")

    async def die(self):
        os.kill(os.getpid(), signal.SIGKILL)


AnsweringActor = ray.remote(num_cpus=0.1)(Answering)


def make_actor(name: str) -> NamedActor:
    return NamedActor(name=name, handle=AnsweringActor.remote())


def make_pool(*actors: NamedActor, num_slots: int = 2, request_s: float = 30) -> EnginePool:
    return EnginePool(
        "generator",
        actors,
        create=lambda index: make_actor(f"again-{index}"),
        limits=PoolLimits(request_s=request_s, start_s=60, replace_s=60, num_slots=num_slots),
        faults=FaultConfig(max_attempts=1, max_restarts=0),
        activity=RoleActivity(),
    )


def make_prompt(index: int = 0) -> Prompt:
    return Prompt(
        problem=Problem(prompt_id=str(index), problem="p", answer="a"),
        epoch=0,
        sample_index=0,
        token_ids=np.asarray([1, 2, 3], dtype=np.int32),
        seed=index,
    )


async def test_call_that_hangs_names_actor_method_and_time():
    actor = make_actor("generator-7")
    start = time.monotonic()
    with pytest.raises(ActorTimeoutError, match=r"generator-7\.hang[\s\S]*within 1 s") as caught:
        await call(actor.handle.hang.remote(), actor=actor.name, method="hang", timeout_s=1)
    assert time.monotonic() - start < 10
    assert "timeouts.*" in str(caught.value)


async def test_stopped_process_is_named_too():
    actor = make_actor("teacher-1")
    pid = ray.get(actor.handle.__ray_call__.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ActorTimeoutError, match=r"teacher-1\.generate"):
            ref = actor.handle.generate.remote([1], sampling_options(SamplingConfig(), seed=0), "x")
            await call(ref, actor=actor.name, method="generate", timeout_s=1)
    finally:
        os.kill(pid, signal.SIGKILL)


async def test_error_of_the_method_keeps_its_type():
    actor = make_actor("learner-0")
    with pytest.raises(RunFailedError, match="what went wrong"):
        await call(actor.handle.fail.remote(), actor=actor.name, method="fail", timeout_s=30)


async def test_time_out_inside_the_method_is_not_taken_for_ours():
    actor = make_actor("learner-0")
    with pytest.raises(TimeoutError, match="its own") as caught:
        await call(actor.handle.time_out_inside.remote(), actor=actor.name, method="x", timeout_s=30)
    assert not isinstance(caught.value, ActorTimeoutError)


async def test_dead_actor_is_named():
    actor = make_actor("generator-3")
    with pytest.raises(RunFailedError, match=r"an actor died[\s\S]*generator-3\.die"):
        await call(actor.handle.die.remote(), actor=actor.name, method="die", timeout_s=30)


async def test_call_all_keeps_order():
    actors = [make_actor("a"), make_actor("b")]
    sampling = sampling_options(SamplingConfig(max_tokens=5), seed=0)
    refs = [a.handle.generate.remote([1], sampling, a.name) for a in actors]
    done = await call_all(refs, actors=["a", "b"], method="generate", timeout_s=30)
    assert [c.text for c in done] == ["a:5:1", "b:5:1"]


async def test_cancelled_caller_cancels_the_call():
    actor = make_actor("generator-0")
    ref = actor.handle.hang.remote()
    calling = asyncio.create_task(call(ref, actor=actor.name, method="hang", timeout_s=60))
    await asyncio.sleep(0.5)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    with pytest.raises(TaskCancelledError):
        ray.get(ref, timeout=20)


async def test_generators_answer_each_sample_with_its_own_request():
    generators = RayGenerators(make_pool(make_actor("g0"), make_actor("g1")))
    done = await asyncio.gather(*(generators.generate(make_prompt(i), SamplingConfig()) for i in range(6)))
    assert len({c.text for c in done}) == 6


async def test_generators_give_logprobs_of_given_tokens():
    generators = RayGenerators(make_pool(make_actor("g0")))
    got = await generators.token_logprobs(np.zeros(3, dtype=np.int32), np.zeros(2, dtype=np.int32))
    assert got.tolist() == [-3.0, -3.0]


async def test_every_argument_of_a_call_reaches_the_teacher():
    teachers = RayTeachers(make_pool(make_actor("t0")))
    three, two = np.zeros(3, dtype=np.int32), np.zeros(2, dtype=np.int32)
    made = await teachers.generate(three, SamplingConfig(), 9, top_k=5)
    assert made.completion.text == "teacher-0 3 9 5"
    scored = await teachers.score(three, two)
    assert isinstance(scored, TeacherHidden) and scored.hidden.tolist() == [[3.0, 3.0]] * 2
    assert (await teachers.token_logprobs(three, two)).tolist() == [-3.0, -3.0]
    assert await teachers.verify(three, two, top_k=25, temperature=0.2, seed=4) == (3, 2, 25, 0.2, 4)


async def test_calls_of_a_teacher_wait_for_its_slots_and_time_out_by_name():
    actor = make_actor("teacher-5")
    teachers = RayTeachers(make_pool(actor, num_slots=1, request_s=1))
    pid = ray.get(actor.handle.__ray_call__.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    two = np.zeros(2, dtype=np.int32)
    try:
        with pytest.raises(RunFailedError, match=r"teacher-5\.verify[\s\S]*no answer after 1 s") as caught:
            await teachers.verify(two, two, top_k=1, temperature=0.0, seed=0)
        assert isinstance(caught.value.__cause__, ActorTimeoutError)
    finally:
        os.kill(pid, signal.SIGKILL)


async def test_no_teachers_are_fine_until_one_is_asked():
    teachers = RayTeachers(None)
    two = np.zeros(2, dtype=np.int32)
    for method, calling in (
        ("generate", teachers.generate(two, SamplingConfig(), 0)),
        ("score", teachers.score(two, two)),
        ("token_logprobs", teachers.token_logprobs(two, two)),
        ("verify", teachers.verify(two, two, top_k=1, temperature=0.0, seed=0)),
    ):
        with pytest.raises(RuntimeError, match=rf"no teacher to ask[\s\S]*teacher\.{method}"):
            await calling


async def test_what_cannot_be_placed_is_said_with_the_shortage_in_time():
    plan = generator_plan(TrdConfig(generator=GeneratorConfig(resources=ResourceConfig(cpus=2))))
    (bundle,) = plan.bundles
    plan = replace(plan, bundles=(replace(bundle, resources=ResourceConfig(cpus=2, gpus=1)),))
    start = time.monotonic()
    with pytest.raises(PlacementError, match=r"GPU: asked 1, cluster has 0, free 0"):
        await reserve(plan, timeout_s=2)
    assert time.monotonic() - start < 20
