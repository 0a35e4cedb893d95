"""Prompts of the teacher: what is in them, what is cut first, exact budgets; and which trajectories count.

The tokenizer has one token a character, so a prompt of n characters is n tokens, less the special ones.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.tiny_tokenizer import END, make_tokenizer
from trd_ray.errors import DataError
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.refinement import (
    REFERENCE_NOTICE,
    ROLLOUT_NOTICE,
    PrivilegedPrompt,
    PromptFormat,
    PromptTooLong,
    privileged_prompt,
    refine_prompt,
    reject_rollout,
    reject_teacher_text,
    student_prompt,
)
from trd_ray.trajectories import of_rollout
from trd_ray.types import (
    Completion,
    Grade,
    Problem,
    Prompt,
    RefinePrompt,
    Rollout,
    StopReason,
    TeacherContext,
)

TOKENIZER = make_tokenizer()
FORMAT = PromptFormat(task_name="math", tokenizer=TOKENIZER, enable_thinking=True)
WIDE = 100_000
SOLUTION = "".join(chr(ord("a") + i % 26) for i in range(200))
REFERENCE = "".join(chr(ord("A") + i % 26) for i in range(150))


def completion(
    text: str = "some text", *, stop: StopReason = StopReason.STOP, logprobs: list[float] | None = None
) -> Completion:
    ids = TOKENIZER.encode(text)
    if stop is StopReason.STOP:
        ids.append(TOKENIZER.convert_tokens_to_ids(END))
    values = [-1.0] * len(ids) if logprobs is None else logprobs
    return Completion(
        token_ids=np.asarray(ids, dtype=np.int32), logprobs=np.asarray(values, dtype=np.float32),
        text=text, stop_reason=stop, policy_version_min=0, policy_version_max=0,
    )  # fmt: skip


def rollout(
    answer: Completion | None = None, *, problem: str = "1+1?", reference: str | None = REFERENCE
) -> Rollout:
    row = Problem(prompt_id="p", problem=problem, answer="2", reference=reference)
    prompt = Prompt(problem=row, epoch=0, sample_index=0, token_ids=np.zeros(1, np.int32), seed=0)
    answer = completion(SOLUTION, stop=StopReason.LENGTH) if answer is None else answer
    return Rollout(prompt=prompt, completion=answer, grade=Grade(correct=False, answer=None))


def build(y_o: Rollout, *, budget: int, privileged: bool = True) -> RefinePrompt:
    result = refine_prompt(y_o, FORMAT, privileged=privileged, max_prompt_tokens=budget)
    assert isinstance(result, RefinePrompt)
    assert len(result.token_ids) <= budget
    return result


def text_of(ids: np.ndarray) -> str:
    return TOKENIZER.decode(ids.tolist())


def cuts(prompt: RefinePrompt) -> tuple[int, int]:
    return prompt.num_cut_rollout_tokens, prompt.num_cut_reference_tokens


FULL = len(build(rollout(), budget=WIDE).token_ids)
NO_SOLUTION = FULL - len(SOLUTION) + len(ROLLOUT_NOTICE)
"""Length once only the notice is left of y_o."""
NOTHING = NO_SOLUTION - len(REFERENCE) + len(REFERENCE_NOTICE)
"""Length once only the notices are left."""


def test_a_prompt_that_fits_holds_everything_unchanged() -> None:
    prompt = build(rollout(), budget=FULL)
    text = text_of(prompt.token_ids)
    assert cuts(prompt) == (0, 0)
    assert "1+1?" in text
    assert SOLUTION in text
    assert REFERENCE in text
    assert "left out" not in text
    assert text.endswith("assistant\n")


def test_one_token_too_many_cuts_the_tail_of_the_rollout_to_the_exact_budget() -> None:
    prompt = build(rollout(), budget=FULL - 1)
    # The notice and its newline take len(notice) + 1 tokens, so that many and one more must go.
    kept = len(SOLUTION) - (len(ROLLOUT_NOTICE) + 1) - 1
    assert cuts(prompt) == (len(SOLUTION) - kept, 0)
    assert len(prompt.token_ids) == FULL - 1
    text = text_of(prompt.token_ids)
    assert f"{SOLUTION[:kept]}\n{ROLLOUT_NOTICE}" in text
    assert SOLUTION[: kept + 1] not in text
    assert REFERENCE in text
    assert REFERENCE_NOTICE not in text


@pytest.mark.parametrize("budget", range(NO_SOLUTION + 2, FULL, 17))
def test_every_budget_between_is_used_to_the_last_token(budget: int) -> None:
    prompt = build(rollout(), budget=budget)
    assert len(prompt.token_ids) == budget
    assert cuts(prompt) == (FULL + len(ROLLOUT_NOTICE) + 1 - budget, 0)


def test_all_of_the_rollout_goes_before_any_of_the_reference() -> None:
    last = build(rollout(), budget=NO_SOLUTION)
    assert cuts(last) == (len(SOLUTION), 0)
    assert REFERENCE in text_of(last.token_ids)
    assert ROLLOUT_NOTICE in text_of(last.token_ids)
    over = build(rollout(), budget=NO_SOLUTION - 1)
    kept = len(REFERENCE) - (len(REFERENCE_NOTICE) + 1) - 1
    assert cuts(over) == (len(SOLUTION), len(REFERENCE) - kept)
    assert len(over.token_ids) == NO_SOLUTION - 1
    text = text_of(over.token_ids)
    assert f"{REFERENCE[:kept]}\n{REFERENCE_NOTICE}" in text
    assert ROLLOUT_NOTICE in text
    assert "1+1?" in text
    assert "Write only the rewritten solution" in text


def test_with_both_gone_the_problem_and_instructions_still_stand_and_below_that_nothing_fits() -> None:
    prompt = build(rollout(), budget=NOTHING)
    assert cuts(prompt) == (len(SOLUTION), len(REFERENCE))
    assert len(prompt.token_ids) == NOTHING
    assert "1+1?" in text_of(prompt.token_ids)
    result = refine_prompt(rollout(), FORMAT, privileged=True, max_prompt_tokens=NOTHING - 1)
    assert result == PromptTooLong(num_tokens=NOTHING, max_prompt_tokens=NOTHING - 1)


def test_without_privilege_the_reference_is_not_shown_and_not_cut() -> None:
    prompt = build(rollout(), budget=WIDE, privileged=False)
    assert REFERENCE not in text_of(prompt.token_ids)
    full = len(prompt.token_ids)
    shortest = full - len(SOLUTION) + len(ROLLOUT_NOTICE)
    assert cuts(build(rollout(), budget=shortest, privileged=False)) == (len(SOLUTION), 0)
    result = refine_prompt(rollout(), FORMAT, privileged=False, max_prompt_tokens=shortest - 1)
    assert result == PromptTooLong(num_tokens=shortest, max_prompt_tokens=shortest - 1)


def test_special_tokens_count_in_the_budget_and_the_end_token_is_not_shown() -> None:
    prompt = build(rollout(completion("abc")), budget=WIDE)
    text = text_of(prompt.token_ids)
    assert text.count(END) == 1
    assert "abc\n" in text
    assert len(prompt.token_ids) == len(TOKENIZER.encode(text))


def test_thinking_of_the_teacher_is_its_own() -> None:
    quiet = PromptFormat(task_name="math", tokenizer=TOKENIZER, enable_thinking=False)
    prompt = refine_prompt(rollout(), quiet, privileged=True, max_prompt_tokens=WIDE)
    assert isinstance(prompt, RefinePrompt)
    assert text_of(prompt.token_ids).endswith("<think></think>\n")


@pytest.mark.parametrize(
    "odd", ["{{ 1/0 }}", "{% for x in y %}", "{# note #}", "{}", "a < b & c > d", "<|im_end|>"]
)
def test_odd_text_survives_in_every_place(odd: str) -> None:
    y_o = rollout(completion(odd if odd != END else "x"), problem=f"P {odd}", reference=f"R {odd}")
    text = text_of(build(y_o, budget=WIDE).token_ids)
    assert f"P {odd}" in text
    assert f"R {odd}" in text
    assert text_of(build(y_o, budget=WIDE).token_ids).count(f"{odd}") >= (2 if odd == END else 3)


def test_the_same_rollout_gives_the_same_prompt() -> None:
    first, second = (build(rollout(), budget=FULL - 40) for _ in range(2))
    assert first.token_ids.tolist() == second.token_ids.tolist()


def test_an_empty_rollout_has_nothing_to_cut() -> None:
    empty = rollout(completion("", stop=StopReason.LENGTH))
    full = len(build(empty, budget=WIDE).token_ids)
    prompt = build(empty, budget=full - 70)
    assert cuts(prompt)[0] == 0
    assert ROLLOUT_NOTICE not in text_of(prompt.token_ids)
    assert cuts(prompt)[1] > 0


def test_a_privileged_prompt_without_reference_is_an_error_that_names_the_problem() -> None:
    bare = rollout(reference=None)
    with pytest.raises(DataError, match="'p'"):
        refine_prompt(bare, FORMAT, privileged=True, max_prompt_tokens=WIDE)
    with pytest.raises(DataError, match="'p'"):
        privileged_prompt(bare.prompt.problem, FORMAT, max_prompt_tokens=WIDE)
    build(bare, budget=WIDE, privileged=False)


def test_student_prompt_is_whole_or_too_long() -> None:
    problem = rollout().prompt.problem
    ids = student_prompt(problem, FORMAT, max_prompt_tokens=WIDE)
    assert isinstance(ids, np.ndarray)
    assert "1+1?" in text_of(ids)
    assert REFERENCE not in text_of(ids)
    same = student_prompt(problem, FORMAT, max_prompt_tokens=len(ids))
    assert isinstance(same, np.ndarray)
    short = student_prompt(problem, FORMAT, max_prompt_tokens=len(ids) - 1)
    assert short == PromptTooLong(num_tokens=len(ids), max_prompt_tokens=len(ids) - 1)


def test_privileged_prompt_cuts_the_reference_to_the_exact_budget() -> None:
    problem = rollout().prompt.problem
    whole = privileged_prompt(problem, FORMAT, max_prompt_tokens=WIDE)
    assert isinstance(whole, PrivilegedPrompt)
    assert whole.num_cut_reference_tokens == 0
    full = len(whole.token_ids)
    cut = privileged_prompt(problem, FORMAT, max_prompt_tokens=full - 1)
    assert isinstance(cut, PrivilegedPrompt)
    assert len(cut.token_ids) == full - 1
    assert cut.num_cut_reference_tokens == len(REFERENCE_NOTICE) + 2
    assert REFERENCE_NOTICE in text_of(cut.token_ids)
    least = full - len(REFERENCE) + len(REFERENCE_NOTICE)
    result = privileged_prompt(problem, FORMAT, max_prompt_tokens=least - 1)
    assert result == PromptTooLong(num_tokens=least, max_prompt_tokens=least - 1)


NAN = float("nan")
INF = float("inf")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion(), RejectReason.NONE),
        (completion(stop=StopReason.LENGTH), RejectReason.REFINE_TRUNCATED),
        (completion("", stop=StopReason.LENGTH), RejectReason.REFINE_TRUNCATED),
        (completion(stop=StopReason.ABORT), RejectReason.ABORTED),
        (completion(""), RejectReason.EMPTY),
        (completion(" \n "), RejectReason.EMPTY),
        (completion("a", logprobs=[-1.0, NAN]), RejectReason.NON_FINITE),
        (completion("a", logprobs=[-INF, -1.0]), RejectReason.NON_FINITE),
        (completion("a", stop=StopReason.LENGTH, logprobs=[NAN]), RejectReason.NON_FINITE),
    ],
)
def test_judging_a_refinement(answer: Completion, reason: RejectReason) -> None:
    judged = of_rollout(
        rollout(),
        context=TeacherContext.PROMPT,
        context_ids=rollout().prompt.token_ids,
        reason=reject_teacher_text(answer, max_tokens=99),
    )
    assert judged.reason is reason
    assert judged.outcome is (Outcome.CONSUMED if reason is RejectReason.NONE else Outcome.REJECTED)


@pytest.mark.parametrize(
    ("answer", "alone", "below_a_refinement"),
    [
        (completion(), RejectReason.NONE, RejectReason.NONE),
        (completion(stop=StopReason.LENGTH), RejectReason.NONE, RejectReason.NONE),
        (completion(""), RejectReason.NONE, RejectReason.NONE),
        (completion("", stop=StopReason.LENGTH), RejectReason.EMPTY, RejectReason.NONE),
        (completion(stop=StopReason.ABORT), RejectReason.ABORTED, RejectReason.ABORTED),
        (completion("a", logprobs=[-1.0, INF]), RejectReason.NON_FINITE, RejectReason.NON_FINITE),
    ],
)
def test_judging_a_rollout(answer: Completion, alone: RejectReason, below_a_refinement: RejectReason) -> None:
    assert reject_rollout(answer, max_tokens=99, is_trajectory=True) is alone
    assert reject_rollout(answer, max_tokens=99, is_trajectory=False) is below_a_refinement


def test_more_tokens_than_were_asked_for_are_refused() -> None:
    long = completion("abc")
    num = len(long.token_ids)
    assert reject_rollout(long, max_tokens=num, is_trajectory=True) is RejectReason.NONE
    assert reject_rollout(long, max_tokens=num - 1, is_trajectory=True) is RejectReason.OVER_LENGTH
    assert reject_teacher_text(long, max_tokens=num - 1) is RejectReason.OVER_LENGTH
