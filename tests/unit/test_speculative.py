"""The loop of speculative distillation with scripted roles."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from trd_ray.config import SamplingConfig, SpeculativeConfig
from trd_ray.speculative import Speculation, speculate
from trd_ray.types import Completion, DraftVerdict, IntArray, Problem, Prompt, StopReason

END = 2
PROMPT = Prompt(
    problem=Problem(prompt_id="0", problem="p", answer="a"),
    epoch=0,
    sample_index=0,
    token_ids=np.asarray([50, 51], dtype=np.int32),
    seed=0,
)
CONTEXT = np.asarray([60, 61, 62], dtype=np.int32)


@dataclass
class Student:
    """Drafts 10, 11, 12, ... by position; `ends` is the position of its end token."""

    ends: int | None = None
    room: int = 1000
    stop: StopReason | None = None
    asked: list[tuple[list[int], int, int]] = field(default_factory=list)

    async def generate(self, prompt: Prompt, sampling: SamplingConfig) -> Completion:
        self.asked.append((prompt.token_ids.tolist(), sampling.max_tokens, prompt.seed))
        start = len(prompt.token_ids) - 2
        stop = min(start + sampling.max_tokens, self.room)
        tokens = [END if p == self.ends else 10 + p for p in range(start, stop)]
        ended = END in tokens
        tokens = tokens[: tokens.index(END) + 1] if ended else tokens
        version = len(self.asked)
        return Completion(
            token_ids=np.asarray(tokens, dtype=np.int32),
            logprobs=np.zeros(len(tokens), dtype=np.float32),
            text="",
            stop_reason=self.stop or (StopReason.STOP if ended else StopReason.LENGTH),
            policy_version_min=version,
            policy_version_max=version,
        )

    async def token_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> IntArray:
        raise AssertionError


@dataclass
class Judge:
    """Refuses the tokens at some positions of the answer, for 90 or the end token."""

    refuses: tuple[int, ...] = ()
    ends: int | None = None
    asked: list[tuple[list[int], list[int], int]] = field(default_factory=list)

    async def verify(
        self, context_ids: IntArray, draft_ids: IntArray, *, top_k: int, temperature: float, seed: int
    ) -> DraftVerdict:
        assert (top_k, temperature) == (25, 0.2)
        self.asked.append((context_ids.tolist(), draft_ids.tolist(), seed))
        start = len(context_ids) - len(CONTEXT)
        for index in range(len(draft_ids)):
            if start + index in self.refuses:
                ends = start + index == self.ends
                return DraftVerdict(
                    num_accepted=index, replacement=END if ends else 90, replacement_ends=ends
                )
        return DraftVerdict(num_accepted=len(draft_ids), replacement=None)


async def run(student: Student, judge: Judge, *, max_tokens: int = 12) -> Speculation:
    return await speculate(
        PROMPT,
        CONTEXT,
        generator=student,  # type: ignore[arg-type]
        teacher=judge,  # type: ignore[arg-type]
        options=SpeculativeConfig(),
        sampling=SamplingConfig(max_tokens=max_tokens),
        seed=4,
    )


async def test_all_accepted_until_the_budget_which_cuts_the_last_block() -> None:
    student, judge = Student(), Judge()
    made = await run(student, judge)
    assert made.token_ids.tolist() == list(range(10, 22))
    assert (made.num_kept, made.num_replaced, made.stop_reason) == (12, 0, StopReason.LENGTH)
    assert [asked[1] for asked in student.asked] == [5, 5, 2]
    assert (made.policy_version_min, made.policy_version_max) == (1, 3)
    assert made.token_ids.dtype == np.int32


async def test_each_role_reads_its_own_prompt_and_the_answer_so_far() -> None:
    student, judge = Student(), Judge(refuses=(1,))
    await run(student, judge, max_tokens=4)
    assert [asked[0] for asked in student.asked] == [[50, 51], [50, 51, 10, 90]]
    assert [asked[0] for asked in judge.asked] == [[60, 61, 62], [60, 61, 62, 10, 90]]
    assert [asked[1] for asked in judge.asked] == [[10, 11, 12, 13], [12, 13]]
    seeds = [asked[2] for asked in (*student.asked, *judge.asked)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


async def test_replacement_at_position_0_and_what_follows_is_dropped() -> None:
    made = await run(Student(), Judge(refuses=(0, 1, 6)), max_tokens=9)
    assert made.token_ids.tolist() == [90, 90, 12, 13, 14, 15, 90, 17, 18]
    assert (made.num_kept, made.num_replaced) == (6, 3)


async def test_never_more_than_one_replacement_a_block() -> None:
    student = Student()
    made = await run(student, Judge(refuses=(0, 1, 2, 3, 4)), max_tokens=5)
    assert made.token_ids.tolist() == [90] * 5
    assert (made.num_kept, made.num_replaced) == (0, 5)
    assert [asked[1] for asked in student.asked] == [5, 4, 3, 2, 1]


async def test_an_accepted_end_token_in_the_middle_of_a_block_ends() -> None:
    student = Student(ends=6)
    made = await run(student, Judge())
    assert made.token_ids.tolist() == [10, 11, 12, 13, 14, 15, END]
    assert (made.num_kept, made.stop_reason) == (7, StopReason.STOP)


async def test_a_refused_end_token_does_not_end() -> None:
    made = await run(Student(ends=6), Judge(refuses=(6,)), max_tokens=9)
    assert made.token_ids.tolist() == [10, 11, 12, 13, 14, 15, 90, 17, 18]
    assert made.stop_reason is StopReason.LENGTH


async def test_tokens_before_a_drafted_end_that_are_refused_drop_it() -> None:
    made = await run(Student(ends=3), Judge(refuses=(2,)), max_tokens=4)
    assert made.token_ids.tolist() == [10, 11, 90, END]
    assert made.stop_reason is StopReason.STOP


async def test_a_replacement_that_ends_ends() -> None:
    made = await run(Student(), Judge(refuses=(3,), ends=3))
    assert made.token_ids.tolist() == [10, 11, 12, END]
    assert (made.num_kept, made.num_replaced, made.stop_reason) == (3, 1, StopReason.STOP)


async def test_an_end_token_that_uses_up_the_budget_is_a_stop() -> None:
    assert (await run(Student(ends=3), Judge(), max_tokens=4)).stop_reason is StopReason.STOP


async def test_a_full_context_ends_the_answer() -> None:
    made = await run(Student(room=7), Judge())
    assert made.token_ids.tolist() == list(range(10, 17))
    assert made.stop_reason is StopReason.LENGTH


async def test_an_aborted_draft_is_not_verified() -> None:
    judge = Judge()
    made = await run(Student(stop=StopReason.ABORT), judge)
    assert (len(made.token_ids), made.stop_reason, judge.asked) == (0, StopReason.ABORT, [])


async def test_a_draft_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="drafted 0 tokens; expected 1 to 5"):
        await run(Student(room=0), Judge())
