"""Contexts of the teacher and the reference solution in the student's own tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.tiny_tokenizer import END, START, make_tokenizer
from trd_ray.errors import DataError
from trd_ray.prompting import PromptBuilder
from trd_ray.refinement import PromptFormat, PromptTooLong
from trd_ray.templates import TemplateName, instructions, render
from trd_ray.types import IntArray, Problem, Prompt, TeacherContext

TOKENIZER = make_tokenizer()
FORMAT = PromptFormat(task_name="math", tokenizer=TOKENIZER, enable_thinking=True)
END_ID = TOKENIZER.convert_tokens_to_ids(END)
PROMPTS = PromptBuilder(
    student_format=FORMAT, teacher_format=FORMAT, max_student_prompt=1000, max_teacher_prompt=1000,
    max_scored=1000, max_trained=1000, end_token_id=END_ID, privileged=False,
)  # fmt: skip


def prompt(reference: str | None = "1+1=2") -> Prompt:
    problem = Problem(prompt_id="p", problem="1+1?", answer="2", reference=reference)
    return Prompt(problem=problem, epoch=0, sample_index=0, token_ids=PROMPTS.student(problem), seed=0)


def test_a_reference_is_its_text_and_the_end_token():
    ids = PROMPTS.reference(prompt().problem)
    assert ids.dtype == np.int32
    assert ids.tolist() == [*(TOKENIZER.convert_tokens_to_ids(c) for c in "1+1=2"), END_ID]
    assert PROMPTS.text(ids) == "1+1=2"


def test_a_reference_that_spells_special_tokens_ends_once():
    ids = PROMPTS.reference(prompt(f"a{END}b{START}").problem).tolist()
    assert ids.count(END_ID) == 1 and ids[-1] == END_ID
    assert TOKENIZER.convert_tokens_to_ids(START) not in ids
    assert len(ids) == len(f"a{END}b{START}") + 1


def test_a_reference_that_is_missing_is_named():
    with pytest.raises(DataError, match="'p'"):
        PROMPTS.reference(prompt(None).problem)


@pytest.mark.parametrize("privileged", [False, True])
def test_an_answering_teacher_sees_the_student_s_prompt_or_the_reference(privileged: bool):
    seen = replace(PROMPTS, privileged=privileged).answer_context(prompt(), num_tokens=10)
    assert isinstance(seen, np.ndarray)
    assert ("1+1=2" in TOKENIZER.decode(seen.tolist())) is privileged
    assert (seen.tolist() == prompt().token_ids.tolist()) is not privileged


@pytest.mark.parametrize("privileged", [False, True])
def test_an_answer_needs_room_for_its_whole_budget(privileged: bool):
    def answer(room: int) -> IntArray | PromptTooLong:
        builder = replace(PROMPTS, privileged=privileged, max_scored=room)
        return builder.answer_context(prompt(), num_tokens=10)

    whole = answer(1000)
    assert isinstance(whole, np.ndarray)
    exact = answer(len(whole) + 10)
    assert isinstance(exact, np.ndarray) and exact.tolist() == whole.tolist()
    assert isinstance(answer(len(whole) + 9), PromptTooLong)


def test_the_student_s_prompt_is_scored_as_it_is():
    seen = PROMPTS.score_context(prompt(), None, context=TeacherContext.PROMPT, num_tokens=5)
    assert isinstance(seen, np.ndarray) and seen.tolist() == prompt().token_ids.tolist()


@pytest.mark.parametrize("task", ["arithmetic", "math"])
@pytest.mark.parametrize("name", [TemplateName.REFINE, TemplateName.REFINE_PRIVILEGED])
def test_every_refinement_prompt_has_instructions_by_which_an_echo_is_known(task: str, name: TemplateName):
    found = instructions(task, name)
    assert found
    shown = render(task, name, problem="P", reference="R", initial_solution="I")
    assert all(sentence in shown for sentence in found)
    assert not any(sentence in "3 + 4 = 7\nThe final answer is \\boxed{7}." for sentence in found)
