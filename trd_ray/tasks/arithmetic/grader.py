"""The grader: which step of a solution is the first wrong one.

A solution is right if and only if it is the canonical solution of its problem, line by line (white
space around the whole text aside). So a right final answer after a wrong step is a wrong solution:
the testbed is about where a solution leaves the right path, and a lucky end does not undo that.
"""

from __future__ import annotations

import re
from itertools import zip_longest

from trd_ray.tasks.arithmetic.problems import parse_problem, solve
from trd_ray.types import Grade, Problem

_STEP = re.compile(r"[0-9]+[+-][0-9]+=-?[0-9]+")
_SPACE = " \n\r\t"
_ANSWER = re.compile(r"#(-?[0-9]+)")


class ArithmeticTask:
    """Implements `trd_ray.tasks.base.Task` for the problems of `generate_problems`."""

    @property
    def name(self) -> str:
        return "arithmetic"

    @property
    def knows_steps(self) -> bool:
        return True

    def grade(self, problem: Problem, text: str) -> Grade:
        """Compare a solution with the canonical one, line by line.

        `first_wrong_step` is the index of the first line that is wrong, malformed, missing or too
        many. The answer line counts as the step after the last one: a problem of n terms has the
        steps 0..n-2, and n-1 stands for a wrong, malformed or missing answer line, a step too many
        in its place, or text after it. `first_wrong_step` is None exactly if `correct`.
        `num_steps` counts well-formed step lines, right or wrong; `answer` is that of the last
        well-formed answer line.

        Raises `DataError` if `problem.problem` is no arithmetic problem, never because of `text`.
        """
        expected = solve(parse_problem(problem.problem))
        body = text.strip(_SPACE)
        lines = body.split("\n")
        first_wrong = next(
            (i for i, (line, right) in enumerate(zip_longest(lines, expected)) if line != right), None
        )
        wrong_at = None
        if first_wrong is not None:
            wrong_at = text.index(body) + _line_start(lines, first_wrong)
            first_wrong = min(first_wrong, len(expected) - 1)
        answers = [match[1] for line in lines if (match := _ANSWER.fullmatch(line))]
        return Grade(
            correct=first_wrong is None,
            answer=answers[-1] if answers else None,
            num_steps=sum(_STEP.fullmatch(line) is not None for line in lines),
            first_wrong_step=first_wrong,
            first_wrong_char=wrong_at,
        )


def _line_start(lines: list[str], index: int) -> int:
    """Characters before line `index`; all of them if there is no such line."""
    if index >= len(lines):
        return len("\n".join(lines))
    return sum(len(line) + 1 for line in lines[:index])
