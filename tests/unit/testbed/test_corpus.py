"""What the testbed's models are trained on."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from trd_ray.tasks.arithmetic import ArithmeticTask, Split, solve, split_of
from trd_ray.tasks.arithmetic.problems import make_problem, parse_problem
from trd_ray.testbed.corpus import InitialSolution, Mixture, draw_train_terms, solution_with_slips, spoil

TASK = ArithmeticTask()


def test_slips_are_well_formed_and_later_steps_build_on_them() -> None:
    rng = Random(0)
    num_wrong = 0
    for _ in range(300):
        terms = draw_train_terms(rng)
        lines = solution_with_slips(rng, terms, rate=0.4)
        grade = TASK.grade(make_problem(terms), "\n".join(lines))
        assert grade.num_steps == len(terms) - 1
        num_wrong += not grade.correct
        for line, next_line in pairwise(lines):
            result = line.split("=")[1]
            assert next_line == f"#{result}" or next_line.startswith((f"{result}+", f"{result}-"))
    assert 150 < num_wrong < 280


def test_no_slips_at_rate_zero() -> None:
    assert solution_with_slips(Random(0), (12, 7, -5), rate=0.0) == solve((12, 7, -5))


def test_spoiled_solutions_are_rarely_right() -> None:
    rng = Random(0)
    problems = [draw_train_terms(rng) for _ in range(500)]
    right = sum(TASK.grade(make_problem(terms), spoil(rng, terms)).correct for terms in problems)
    assert 0 < right < 125


def test_mixture_draws_no_held_out_problem_and_only_right_rewrites() -> None:
    rollout = InitialSolution(terms=(12, 7, -5), text="garbage")
    mixture = Mixture(
        student=1, privileged=1, refine=1, refine_privileged=1, rollouts=[rollout], rollout_share=0.5
    )
    rng = Random(0)
    examples = [mixture.draw(rng) for _ in range(400)]
    assert any("garbage" in example.user for example in examples)
    for example in examples:
        problem = example.user.removeprefix("Problem: ").split("\n")[0]
        assert split_of(problem) is Split.TRAIN
        assert example.response == "\n".join(solve(parse_problem(problem)))


def test_drawing_is_deterministic() -> None:
    mixture = Mixture(student=1, privileged=1, refine=1, refine_privileged=1, student_slip_rate=0.3)
    assert [mixture.draw(Random(4)) for _ in range(5)] == [mixture.draw(Random(4)) for _ in range(5)]
