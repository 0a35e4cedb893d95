"""A task: the testbed's sums, where the last line decides and the steps do not count."""

from __future__ import annotations

from trd_ray.types import Grade, Problem

_ASK = "Problem: {{ problem }}\n"
_REFERENCE = "Reference solution:\n{{ reference }}\n"
_INITIAL = "Initial solution:\n{{ initial_solution }}\n"
_REWRITE = "Keep correct steps, fix errors. Write only the rewritten solution."


class AnswerOnly:
    name = "answer_only"
    knows_steps = False  # the grader cannot say where a solution goes wrong
    templates = {  # noqa: RUF012 (read only)
        "student": _ASK + "Solve step by step.",
        "privileged": _ASK + _REFERENCE + "Solve step by step.",
        "refine": _ASK + _INITIAL + _REWRITE,
        "refine_privileged": _ASK + _REFERENCE + _INITIAL + _REWRITE,
    }

    def grade(self, problem: Problem, text: str) -> Grade:
        last_line = text.strip().rpartition("\n")[2]
        if not last_line.startswith("#"):
            return Grade(correct=False, answer=None)
        answer = last_line.removeprefix("#")
        return Grade(correct=answer == problem.answer, answer=answer)
