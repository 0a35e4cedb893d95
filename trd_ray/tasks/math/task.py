"""The math task: its name and its grader."""

from __future__ import annotations

from trd_ray.tasks.math.answers import equal_numbers, find_answer, read_number
from trd_ray.tasks.math.symbolic import shared_judge
from trd_ray.types import Grade, Problem


class MathTask:
    """Implements `trd_ray.tasks.base.Task`. May be used from any thread."""

    @property
    def name(self) -> str:
        return "math"

    @property
    def knows_steps(self) -> bool:
        return False

    def grade(self, problem: Problem, text: str) -> Grade:
        """Right if the final answer of `text` has the value of `problem.answer`.

        Numbers are compared here; anything else is compared symbolically in a process of its own,
        within a time limit. What cannot be read or compared is a wrong answer.
        """
        found = find_answer(text)
        if found is None:
            return Grade(correct=False, answer=None)
        return Grade(correct=_same(problem.answer, found), answer=found)


def _same(expected: str, found: str) -> bool:
    if expected == found:
        return True
    expected_number, found_number = read_number(expected), read_number(found)
    if expected_number is not None and found_number is not None:
        return equal_numbers(expected_number, found_number)
    return shared_judge().equal(expected, found)
