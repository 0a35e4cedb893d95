"""Least outstanding tokens first, slots as bounds, nobody overtaken, nobody forgotten."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trd_ray.balancer import Balancer


def balancer(num_members: int, num_slots: int) -> Balancer:
    group = Balancer(num_slots=num_slots)
    for member in range(num_members):
        group.add(member)
    return group


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_member_with_the_fewest_outstanding_tokens_is_next():
    group = balancer(2, 9)
    assert [await group.acquire(n) for n in (100, 10, 10)] == [0, 1, 1]
    group.release(0, 100)
    assert await group.acquire(1) == 0


async def test_a_long_request_does_not_hold_up_short_ones():
    group = balancer(2, 1)
    assert await group.acquire(10_000) == 0
    assert await group.acquire(10) == 1
    waiting = asyncio.create_task(group.acquire(10))
    await settle()
    assert (waiting.done(), group.num_waiting) == (False, 1)
    group.release(1, 10)
    assert await waiting == 1, "the free member takes it, not the one whose queue it might have joined"


async def test_waiting_requests_are_served_in_order():
    group = balancer(1, 1)
    await group.acquire(1)
    served: list[str] = []

    async def ask(name: str) -> None:
        await group.acquire(1)
        served.append(name)
        group.release(0, 1)

    tasks = [asyncio.create_task(ask(name)) for name in "abc"]
    await settle()
    group.release(0, 1)
    await asyncio.gather(*tasks)
    assert served == ["a", "b", "c"]


async def test_a_request_that_gives_up_passes_its_turn_on():
    group = balancer(1, 1)
    await group.acquire(1)
    first, second = (asyncio.create_task(group.acquire(1)) for _ in range(2))
    await settle()
    group.release(0, 1)
    first.cancel()
    assert await asyncio.wait_for(second, 1) == 0


async def test_requests_that_are_cancelled_while_a_slot_is_given_back_are_cancelled_and_nothing_else():
    group = balancer(1, 1)
    await group.acquire(1)
    waiting = [asyncio.create_task(group.acquire(1)) for _ in range(3)]
    await settle()
    for task in waiting:
        task.cancel()
    group.release(0, 1)  # before any of them has noticed
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 3
    assert await asyncio.wait_for(group.acquire(1), 1) == 0


async def test_a_removed_member_takes_nothing_and_comes_back_empty():
    group = balancer(2, 1)
    held = await group.acquire(5)
    group.remove(held)
    group.release(held, 5)
    assert await group.acquire(5) == 1 - held
    waiting = asyncio.create_task(group.acquire(5))
    await settle()
    assert not waiting.done()
    group.add(held)
    assert await asyncio.wait_for(waiting, 1) == held


async def test_without_members_a_request_waits_for_one():
    group = Balancer(num_slots=2)
    waiting = [asyncio.create_task(group.acquire(1)) for _ in range(2)]
    await settle()
    group.add(7)
    assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [7, 7]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), min_size=1, max_size=60), st.integers(1, 3))
def test_whatever_the_order_no_slot_is_lost_and_none_is_given_twice(
    jobs: list[tuple[int, int]], num_slots: int
):
    async def play() -> None:
        group = balancer(3, num_slots)
        held = [0, 0, 0]

        async def job(num_tokens: int, patience: int) -> None:
            member = await group.acquire(num_tokens)
            held[member] += 1
            assert held[member] <= num_slots
            for _ in range(patience):
                await asyncio.sleep(0)
            held[member] -= 1
            group.release(member, num_tokens)

        tasks = [asyncio.create_task(job(*one)) for one in jobs]
        for task in tasks[::3]:
            await asyncio.sleep(0)
            if not task.done() and held == [0, 0, 0]:
                task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        again = [await asyncio.wait_for(group.acquire(1), 1) for _ in range(3 * num_slots)]
        assert sorted(again) == sorted(list(range(3)) * num_slots)

    asyncio.run(play())


def test_the_queue_of_loads_does_not_grow_with_the_requests():
    async def play() -> int:
        group = balancer(4, 8)
        for _ in range(5_000):
            group.release(await group.acquire(3), 3)
        return len(group._heap)

    assert asyncio.run(play()) < 200


def test_no_slots_are_an_error():
    with pytest.raises(ValueError, match="num_slots is 0"):
        Balancer(num_slots=0)
