"""The math task: which answer a text states, which answers are equal, and that odd text is only wrong."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trd_ray.errors import ConfigError
from trd_ray.tasks.math import MathTask
from trd_ray.tasks.math.answers import (
    equal_numbers,
    final_answer,
    find_answer,
    read_number,
    reference_solution,
)
from trd_ray.tasks.math.symbolic import SymbolicJudge
from trd_ray.tasks.registry import RowText, load_row_reader, load_task, task_names
from trd_ray.templates import TemplateName, render
from trd_ray.types import Problem

TASK = MathTask()


def correct(answer: str, text: str) -> bool:
    return TASK.grade(Problem(prompt_id="p", problem="?", answer=answer), text).correct


@pytest.fixture(scope="module")
def judge() -> Iterator[SymbolicJudge]:
    judge = SymbolicJudge(limit_s=30.0)
    yield judge
    judge.close()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{18}", "18"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} done", r"\frac{1}{2}"),
        (r"$\boxed{ x^{2} }$", "x^{2}"),
        (r"\boxed {7}", "7"),
        ("5 + 5 = 10\n#### 10", "10"),
        ("####10\nmore", "10"),
        (r"\boxed{3} but #### 4", "4"),
        (r"#### 4 but \boxed{3}", "3"),
        ("The answer is 18.", "18"),
        ("the final answer is: $18$.", "18"),
        ("**Answer:** 18", "18"),
        ("Answer: 7\nThe answer is 8", "8"),
        (r"The answer is 5. \boxed{6}", "6"),
        (r"the answer is \(\frac{1}{2}\).", r"\frac{1}{2}"),
        ("The answer is 3.5", "3.5"),
    ],
)
def test_the_stated_answer(text: str, answer: str) -> None:
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    "text", ["", "18", "an answer 18", "no answer", r"\boxed{", r"\boxed{1", r"\boxed{}", "####", "#### \n"]
)
def test_no_stated_answer(text: str) -> None:
    assert find_answer(text) is None
    grade = TASK.grade(Problem(prompt_id="p", problem="?", answer="18"), text)
    assert not grade.correct
    assert grade.answer is None


def test_an_unfinished_box_does_not_hide_an_earlier_one() -> None:
    assert find_answer(r"\boxed{5} and \boxed{6") == "5"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", Fraction(18)),
        ("-18", Fraction(-18)),
        ("$1,234,567.50", Fraction(123456750, 100)),
        (r"\$18", Fraction(18)),
        ("-$5", Fraction(-5)),
        ("18 dollars", Fraction(18)),
        ("5 apples per day", Fraction(5)),
        ("x = 3", Fraction(3)),
        ("50%", Fraction(50)),
        (r"50\%", Fraction(50)),
        ("1/2", Fraction(1, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"18\text{ cm}", Fraction(18)),
        ("12 thousand", Fraction(12000)),
        (".5", Fraction(1, 2)),
        ("073", Fraction(73)),
        ("1{,}000", Fraction(1000)),
    ],
)
def test_numbers(text: str, value: Fraction) -> None:
    assert read_number(text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "2x", "1,23", "3 and 5", "1/0", "9" * 5000, "2 + 3", "(1,2)", "1 2"]
)
def test_what_is_not_one_number(text: str) -> None:
    assert read_number(text) is None


def test_numbers_are_equal_to_six_decimals_at_any_size() -> None:
    assert equal_numbers(Fraction(1), Fraction(1) + Fraction(1, 10**7))
    assert not equal_numbers(Fraction(1), Fraction(1) + Fraction(1, 10**6))
    assert not equal_numbers(Fraction(10**12), Fraction(10**12 + 1))


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("18", r"\boxed{18.00}", True),
        ("18", "#### $18", True),
        ("18", "#### 19", False),
        ("18", r"\boxed{-18}", False),
        ("0.5", r"\boxed{\frac{1}{2}}", True),
        ("1000", r"\boxed{1,000}", True),
        ("Monday", r"\boxed{Monday}", True),
    ],
)
def test_grading_numbers(answer: str, text: str, expected: bool) -> None:
    assert correct(answer, text) is expected


@pytest.mark.parametrize(
    ("expected", "found", "equal"),
    [
        ("x^2+2x+1", "(x+1)^2", True),
        (r"\sqrt{2}", r"\frac{2}{\sqrt{2}}", True),
        ("(1,2)", "(1, 2)", True),
        ("(1,2)", "(2, 1)", False),
        ("x+1", "x+2", False),
        ("5", r"\frac{}{}", False),
        ("5", "\ud800", False),
        ("5", "\x00\n}{", False),
        ("5", "(" * 40, False),
    ],
)
def test_symbolic_comparison(judge: SymbolicJudge, expected: str, found: str, equal: bool) -> None:
    assert judge.equal(expected, found) is equal


def test_an_expression_that_never_ends_is_wrong_in_time_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    judge = SymbolicJudge(limit_s=1.0)
    with caplog.at_level(logging.WARNING):
        assert judge.equal("x", "x") in (True, False)  # starts the child outside the measurement
        start = time.monotonic()
        assert not judge.equal("5", "10^{10^{10}}")
    assert time.monotonic() - start < 10.0
    assert "counted as wrong" in caplog.text
    judge.close()


def test_a_dead_child_is_replaced(judge: SymbolicJudge) -> None:
    assert judge.equal("x+1", "1+x")
    child = judge._child
    assert child is not None
    child.kill()
    child.wait()
    assert judge.equal("x+1", "1+x")
    assert judge._child is not child


def test_close_stops_the_child() -> None:
    judge = SymbolicJudge(limit_s=30.0)
    assert judge.equal("x+1", "1+x")
    child = judge._child
    assert child is not None
    judge.close()
    assert child.returncode is not None
    judge.close()


def test_grading_in_threads_of_an_event_loop() -> None:
    async def grade_all() -> list[bool]:
        texts = [r"\boxed{1+x}", r"\boxed{x+2}", r"\boxed{(2x+2)/2}"]
        return await asyncio.gather(*(asyncio.to_thread(correct, "x+1", text) for text in texts))

    assert asyncio.run(grade_all()) == [True, False, True]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=60))
def test_reading_never_raises(text: str) -> None:
    find_answer(text)
    read_number(text)
    find_answer(rf"\boxed{{{text}}}")
    reference_solution(text)


def test_gsm8k_solution_and_answer_come_from_one_column() -> None:
    column = "He has 48/2 = <<48/2=24>>24 clips.\nThat is $<<24*2=48>>48.\n#### 1,048"
    assert final_answer(column) == "1,048"
    assert reference_solution(column) == (
        "He has 48/2 = 24 clips.\nThat is $48.\nThe final answer is \\boxed{1,048}."
    )
    read = load_row_reader("math")(RowText(answer=column, reference=column))
    assert read == RowText(answer="1,048", reference=reference_solution(column))
    assert load_row_reader("math")(RowText(answer=" 18 ", reference=None)) == RowText(
        answer="18", reference=None
    )


def test_every_reference_of_the_form_is_graded_right() -> None:
    assert correct("18", reference_solution("9+9 = <<9+9=18>>18\n#### 18"))


def test_a_plain_task_leaves_rows_alone() -> None:
    row = RowText(answer="#### 5", reference="<<x>>")
    assert load_row_reader("arithmetic")(row) == row


@pytest.mark.parametrize("name", task_names())
def test_tasks_by_name(name: str) -> None:
    assert load_task(name).name == name


def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean math"):
        load_task("maths")
    with pytest.raises(ConfigError, match="arithmetic, math"):
        load_task("zzzzzz")


@pytest.mark.parametrize("template", list(TemplateName))
def test_templates_hold_their_values_unchanged(template: TemplateName) -> None:
    text = render(
        "math", template, problem="P {{ p }} <b>", reference="R {% r %}", initial_solution="S {# s #}"
    )
    assert "P {{ p }} <b>" in text
    assert ("R {% r %}" in text) is (template in (TemplateName.PRIVILEGED, TemplateName.REFINE_PRIVILEGED))
    assert ("S {# s #}" in text) is (template in (TemplateName.REFINE, TemplateName.REFINE_PRIVILEGED))
    assert r"\boxed{}" in text
