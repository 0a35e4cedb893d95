"""What a task is: how a problem is put to the student, how a solution is graded."""

from __future__ import annotations

from typing import Protocol

from trd_ray.types import Grade, Problem


class Task(Protocol):
    """A task is stateless; one instance serves a whole run."""

    @property
    def name(self) -> str:
        """Of a task of this package: its folder under `trd_ray/tasks/`, which also holds its `templates/`."""
        ...

    @property
    def knows_steps(self) -> bool:
        """The grader says where a wrong solution goes wrong (`Grade.first_wrong_char`)."""
        ...

    def grade(self, problem: Problem, text: str) -> Grade:
        """Judge a solution text. Never raises on bad text: that is a wrong answer."""
        ...
