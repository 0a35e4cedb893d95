"""Which prompts begin together."""

from __future__ import annotations

import asyncio

from tests.unit.trajectory_records import ints
from trd_ray.activity import RoleActivity
from trd_ray.production_loop import ProductionLoop
from trd_ray.types import Problem, Prompt


def prompts(first: int, num: int) -> tuple[Prompt, ...]:
    problem = Problem(prompt_id="p", problem="1+1", answer="2")
    return tuple(
        Prompt(problem=problem, token_ids=ints(1), epoch=0, sample_index=first + i, seed=0)
        for i in range(num)
    )


class Feed:
    """One prompt a problem."""

    def __init__(self, num_drawn: int) -> None:
        self.num_drawn = num_drawn

    def draw(self, num_problems: int) -> tuple[Prompt, ...]:
        self.num_drawn += num_problems
        return prompts(self.num_drawn - num_problems, num_problems)


class Ledger:
    def __init__(self) -> None:
        self.admitted: list[int] = []

    def admit(self, drawn: tuple[Prompt, ...]) -> None:
        self.admitted += [prompt.sample_index for prompt in drawn]


class Producer:
    def __init__(self) -> None:
        self.made: list[int] = []

    async def produce(self, prompt: Prompt, stages: object) -> None:
        self.made.append(prompt.sample_index)


async def test_what_is_made_again_begins_with_the_rest_of_its_step() -> None:
    sizes: list[int] = []
    producer, ledger = Producer(), Ledger()
    loop = ProductionLoop(
        feed=Feed(num_drawn=3), producer=producer, ledger=ledger, stages=sizes.append,  # type: ignore[arg-type]
        problems_per_step=4, max_in_flight=0, activity=RoleActivity(),
    )  # fmt: skip
    loop.again(prompts(0, 3))  # of a run that was stopped when it had drawn 3 of 4
    loop.allow(4)
    running = asyncio.create_task(loop.run())
    try:
        await _until(lambda: len(producer.made) == 4)
        assert (sizes, ledger.admitted) == ([4], [3])
        loop.allow(8)
        await _until(lambda: len(producer.made) == 8)
        loop.again(prompts(7, 1))
        await _until(lambda: len(producer.made) == 9)
        assert sizes == [4, 4, 1]
        assert producer.made == [*range(8), 7]
    finally:
        running.cancel()
        await asyncio.wait({running})


async def _until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)
