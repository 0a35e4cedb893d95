"""A task of the user's own: `data.task: my_module:MyTask`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

from jinja2 import TemplateError

from trd_ray.errors import TrdRayError
from trd_ray.extensions import BROKEN, load_attribute, refused
from trd_ray.tasks.base import Task
from trd_ray.templates import TemplateName, compile_template
from trd_ray.types import Grade, Problem

_KEY = "data.task"
_SHOWS = {
    TemplateName.STUDENT: ("problem",),
    TemplateName.PRIVILEGED: ("problem", "reference"),
    TemplateName.REFINE: ("problem", "initial_solution"),
    TemplateName.REFINE_PRIVILEGED: ("problem", "reference", "initial_solution"),
}


class CustomTask(Task, Protocol):
    """A task that brings its own templates along."""

    @property
    def templates(self) -> Mapping[str, str]:
        """Jinja2 text of `student`, `privileged`, `refine` and `refine_privileged`."""
        ...


def load_custom_task(path: str) -> CustomTask:
    """Call what `path` names, without arguments, and look at what comes out.

    Raises `ConfigError` if it is no task: an attribute is missing, a template lacks one of the values that
    it is there to show or needs another. Its grader is tried with real problems: `check_grader`.
    """
    make = load_attribute(path, key=_KEY)
    if not callable(make):
        raise refused(_KEY, f"{path}: {make!r}", "a class, or a function without arguments", "name the class")
    try:
        task = make()
        missing = [name for name in ("name", "knows_steps", "grade", "templates") if not hasattr(task, name)]
    except BROKEN as error:
        raise refused(
            _KEY, f"{path}: {type(error).__name__}: {error}", "a task", "make it without arguments"
        ) from error
    if missing:
        raise refused(
            _KEY, f"{path}: no {', no '.join(missing)}", "name, knows_steps, grade and templates",
            "add what is missing; trd_ray/tasks/base.py says what each is",
        )  # fmt: skip
    made = cast(CustomTask, task)
    for template in TemplateName:
        _check_template(path, made, template)
    return made


def _check_template(path: str, task: CustomTask, template: TemplateName) -> None:
    where = f"{path}: templates[{template.value!r}]"
    if template.value not in task.templates:
        raise refused(_KEY, f"{where} is missing", ", ".join(TemplateName), "add the template")
    values = {name: f"<{name}>" for name in _SHOWS[template]}
    try:
        shown = compile_template(task.templates[template.value]).render(values)
    except TemplateError as error:
        raise refused(
            _KEY, f"{where}: {error}", f"a template of {', '.join(values)}", "mend the template"
        ) from error
    absent = [name for name, value in values.items() if value not in shown]
    if absent:
        raise refused(
            _KEY, f"{where} does not show {', '.join(absent)}", f"all of {', '.join(values)}",
            f"write {{{{ {absent[0]} }}}} where it belongs",
        )  # fmt: skip


def check_grader(task: Task, problem: Problem) -> None:
    """Grade an empty text, which is a wrong answer to `problem` and never an error.

    Raises `ConfigError` if the grader fails or returns something else, and `DataError` if that is what the
    grader raises: then it cannot read the problem.
    """
    try:
        grade = task.grade(problem, "")
    except TrdRayError:
        raise
    except BROKEN as error:
        raise refused(
            _KEY, f"grade({problem.prompt_id!r}, '') raises {type(error).__name__}: {error}", "a Grade",
            "return Grade(correct=False, answer=None) for a text that cannot be read",
        ) from error  # fmt: skip
    if not isinstance(grade, Grade):
        raise refused(
            _KEY, f"grade({problem.prompt_id!r}, '') returns {type(grade).__name__}",
            "a trd_ray.types.Grade", "return Grade(correct=..., answer=...)",
        )  # fmt: skip
