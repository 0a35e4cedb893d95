"""Buffer, barrier, micro-batcher: bounds and order, with events and never with sleeps."""

from __future__ import annotations

import asyncio
import threading

import pytest

from trd_ray.buffer import TrajectoryBuffer
from trd_ray.micro_batcher import MicroBatcher
from trd_ray.stage_barrier import StageBarrier


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_full_buffer_holds_the_producer_back():
    buffer = TrajectoryBuffer(capacity=1)
    await buffer.put("a")  # type: ignore[arg-type]
    second = asyncio.create_task(buffer.put("b"))  # type: ignore[arg-type]
    await settle()
    assert not second.done()
    assert await buffer.take(1) == ("a",)
    await second
    assert await buffer.take(1) == ("b",)


async def test_take_waits_for_one_and_takes_no_more_than_asked_in_order():
    buffer = TrajectoryBuffer(capacity=3)
    taking = asyncio.create_task(buffer.take(2))
    await settle()
    assert not taking.done()
    for name in "abc":
        await buffer.put(name)  # type: ignore[arg-type]
    assert await taking == ("a", "b")
    assert (buffer.held, len(buffer)) == (("c",), 1)


async def test_take_that_is_cancelled_while_it_waits_takes_nothing():
    buffer = TrajectoryBuffer(capacity=3)
    taking = asyncio.create_task(buffer.take(2))
    await settle()
    taking.cancel()
    await asyncio.wait({taking})
    await buffer.put("a")  # type: ignore[arg-type]
    assert buffer.held == ("a",)


async def test_take_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="most=0"):
        await TrajectoryBuffer(capacity=3).take(0)


async def test_barrier_opens_for_the_last_and_closes_again():
    barrier = StageBarrier(num_parties=3, enabled=True)
    passed: list[tuple[int, int]] = []

    async def party(name: int) -> None:
        for stage in range(3):
            await barrier.wait()
            passed.append((stage, name))

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for name in range(3):
            group.create_task(party(name))
    assert [stage for stage, _ in passed] == [0] * 3 + [1] * 3 + [2] * 3


async def test_barrier_that_is_off_holds_nobody():
    barrier = StageBarrier(num_parties=2, enabled=False)
    await asyncio.wait_for(barrier.wait(), 1)


async def test_micro_batcher_joins_what_is_asked_at_once_and_keeps_order():
    batches: list[list[int]] = []

    def compute(requests):
        batches.append(list(requests))
        return [r * 10 for r in requests]

    batcher = MicroBatcher(compute, max_batch=3)
    results = await asyncio.gather(*(batcher.submit(i) for i in range(5)))
    assert results == [0, 10, 20, 30, 40]
    assert batches == [[0, 1, 2], [3, 4]]


async def test_micro_batcher_gathers_while_a_batch_computes():
    release, batches = threading.Event(), []

    def compute(requests):
        batches.append(list(requests))
        if len(batches) == 1:
            release.wait(5)
        return list(requests)

    batcher = MicroBatcher(compute, max_batch=10)
    first = asyncio.create_task(batcher.submit(0))
    while not batches:
        await asyncio.sleep(0.001)
    others = [asyncio.create_task(batcher.submit(i)) for i in (1, 2)]
    await settle()
    release.set()
    assert await asyncio.gather(first, *others) == [0, 1, 2]
    assert batches == [[0], [1, 2]]


async def test_micro_batcher_gives_an_error_to_its_batch_and_goes_on():
    def compute(requests):
        if 1 in requests:
            raise ZeroDivisionError("model")
        return list(requests)

    batcher = MicroBatcher(compute, max_batch=2)
    results = await asyncio.gather(*(batcher.submit(i) for i in range(4)), return_exceptions=True)
    assert [type(r).__name__ for r in results] == ["ZeroDivisionError", "ZeroDivisionError", "int", "int"]
