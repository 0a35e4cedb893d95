"""The arithmetic task: its problems, its split, its grader and its templates."""

from __future__ import annotations

from itertools import islice

import pytest

from trd_ray.errors import DataError
from trd_ray.tasks.arithmetic import ArithmeticTask, Split, generate_problems, solve, split_of
from trd_ray.tasks.arithmetic.problems import MAX_TOTAL, make_problem, parse_problem
from trd_ray.tasks.base import Task
from trd_ray.templates import TemplateName, render
from trd_ray.types import Problem

TASK: Task = ArithmeticTask()
PROBLEM = make_problem((12, 7, -5, 30))  # 12+7=19, 19-5=14, 14+30=44
RIGHT = "12+7=19\n19-5=14\n14+30=44\n#44"


def test_reference_is_graded_right() -> None:
    for problem in generate_problems(seed=3, split=Split.TRAIN, num=200):
        assert problem.reference is not None
        grade = TASK.grade(problem, problem.reference)
        assert grade.correct
        assert grade.first_wrong_step is None
        assert grade.answer == problem.answer
        assert grade.num_steps == len(parse_problem(problem.problem)) - 1


@pytest.mark.parametrize(
    ("text", "answer", "num_steps", "first_wrong_step"),
    [
        pytest.param("12+7=18\n18-5=13\n13+30=43\n#43", "43", 3, 0, id="later steps build on a slip"),
        pytest.param("12+7=19\n19-5=15\n15+30=45\n#45", "45", 3, 1, id="slip in the middle"),
        pytest.param("12+7=19\n19-5=13\n14+30=44\n#44", "44", 3, 1, id="right answer with a wrong step"),
        pytest.param("12+7=19\n19+5=24\n24+30=54\n#54", "54", 3, 1, id="sign misread"),
        pytest.param("12+7=19\n19-5=14\n#14", "14", 2, 2, id="missing last step"),
        pytest.param("12+7=19\n14+30=44\n#44", "44", 2, 1, id="missing step in the middle"),
        pytest.param("#44", "44", 0, 0, id="answer only"),
        pytest.param("12+7=19\n19-5=14\n14+30=44\n#45", "45", 3, 3, id="wrong answer line only"),
        pytest.param("12+7=19\n19-5=14\n14+30=44", None, 3, 3, id="missing answer line"),
        pytest.param("12+7=19\n19-5=14\n14+30=44\n44", None, 3, 3, id="malformed answer line"),
        pytest.param("12+7=19\n19-5=14\n14+30=44\n44+0=44\n#44", "44", 4, 3, id="one step too many"),
        pytest.param(f"{RIGHT}\nso there", "44", 3, 3, id="text after the answer"),
        pytest.param(f"{RIGHT}\n\n#44", "44", 3, 3, id="two answers"),
        pytest.param("12+7=19\n19-5=\n14+30=44\n#44", "44", 2, 1, id="malformed step"),
        pytest.param("12+7=19\n19 - 5 = 14\n14+30=44\n#44", "44", 2, 1, id="spaces inside a step"),
        pytest.param("Sure!\n" + RIGHT, "44", 3, 0, id="text before the steps"),
        pytest.param("7+12=19\n19-5=14\n14+30=44\n#44", "44", 3, 0, id="operands swapped"),
        pytest.param("012+7=19\n19-5=14\n14+30=44\n#44", "44", 3, 0, id="leading zero"),
        pytest.param("12+7=19\n19-5=1", None, 2, 1, id="cut inside a step"),
        pytest.param("12+7=19\n", None, 1, 1, id="cut after a step"),
        pytest.param("", None, 0, 0, id="empty"),
        pytest.param("\n\n  \n", None, 0, 0, id="white space only"),
        pytest.param("\u0661+7=19", None, 0, 0, id="digits beyond ASCII"),
        pytest.param("5" * 10_000, None, 0, 0, id="very long number"),
    ],
)
def test_wrong_solutions(text: str, answer: str | None, num_steps: int, first_wrong_step: int) -> None:
    grade = TASK.grade(PROBLEM, text)
    assert not grade.correct
    assert grade.answer == answer
    assert grade.num_steps == num_steps
    assert grade.first_wrong_step == first_wrong_step


def test_white_space_around_a_solution_is_no_error() -> None:
    assert TASK.grade(PROBLEM, f"\n {RIGHT}\n\n").correct


def test_a_problem_that_is_no_sum_is_named() -> None:
    row = Problem(prompt_id="a", problem="two plus two", answer="4")
    with pytest.raises(DataError, match="two plus two"):
        TASK.grade(row, "#4")


def test_solve() -> None:
    assert solve((12, 7, -5, 30)) == ("12+7=19", "19-5=14", "14+30=44", "#44")


def test_generation_is_deterministic_and_endless() -> None:
    first = list(generate_problems(seed=7, split=Split.TRAIN, num=50))
    assert first == list(islice(generate_problems(seed=7, split=Split.TRAIN, num=None), 50))
    assert first != list(generate_problems(seed=8, split=Split.TRAIN, num=50))


def test_splits_are_disjoint_by_problem_whatever_the_seeds() -> None:
    train = {p.problem for seed in (0, 1) for p in generate_problems(seed=seed, split=Split.TRAIN, num=4000)}
    held_out = {
        p.problem for seed in (0, 1) for p in generate_problems(seed=seed, split=Split.HELD_OUT, num=4000)
    }
    assert not train & held_out
    assert {split_of(problem) for problem in train} == {Split.TRAIN}
    assert {split_of(problem) for problem in held_out} == {Split.HELD_OUT}


def test_split_of_a_problem_never_changes() -> None:
    # The shipped models were trained on one side of this border: it must not move.
    assert [split_of(text).value for text in ("12+7-5", "1+2+1", "1+2+4", "1+2+5")] == [
        "train", "held_out", "held_out", "train",
    ]  # fmt: skip


def test_problems_are_unique_and_in_range() -> None:
    problems = list(generate_problems(seed=5, split=Split.TRAIN, num=5000))
    assert len({p.prompt_id for p in problems}) == len({p.problem for p in problems}) == 5000
    for problem in problems:
        terms = parse_problem(problem.problem)
        assert 3 <= len(terms) <= 5
        totals = [sum(terms[: i + 1]) for i in range(len(terms))]
        assert min(totals) >= 0
        assert max(totals) <= MAX_TOTAL
        assert all(1 <= abs(term) <= 99 for term in terms)
        assert problem.answer == str(totals[-1])


@pytest.mark.parametrize("template", list(TemplateName))
def test_templates_pass_braces_through(template: TemplateName) -> None:
    values = {
        "problem": "{{ 1 + 1 }} {% raw %} <b>&",
        "reference": "{{ reference }} {# gone? #}",
        "initial_solution": "}} {{ problem.__class__ }}",
    }
    used = {
        TemplateName.STUDENT: ("problem",),
        TemplateName.PRIVILEGED: ("problem", "reference"),
        TemplateName.REFINE: ("problem", "initial_solution"),
        TemplateName.REFINE_PRIVILEGED: ("problem", "reference", "initial_solution"),
    }[template]
    text = render("arithmetic", template, **{"problem": "", **{name: values[name] for name in used}})
    for name in used:
        assert values[name] in text
    for name in values.keys() - set(used):
        assert values[name] not in text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("12+7=19\n19-5=14\n#14", None),
        ("12+7=18\n18-5=13\n#13", ""),
        ("12+7=19\n19-5=13\n#13", "12+7=19\n"),
        ("\n 12+7=19\n19-5=13", "\n 12+7=19\n"),
        ("12+7=19", "12+7=19"),
        ("12+7=19\n19-5=14\n#14\nmore", "12+7=19\n19-5=14\n#14\n"),
        ("", ""),
    ],
)
def test_the_first_wrong_character_is_where_the_first_wrong_step_begins(text: str, kept: str | None):
    grade = ArithmeticTask().grade(make_problem((12, 7, -5)), text)
    if kept is None:
        assert grade.first_wrong_char is None
    else:
        assert grade.first_wrong_char is not None
        assert text[: grade.first_wrong_char] == kept
