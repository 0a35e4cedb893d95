"""Tasks by name or import path, and how each reads the rows of a data file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trd_ray.errors import ConfigError, describe
from trd_ray.extensions import is_import_path
from trd_ray.tasks.base import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class RowText:
    """The answer and reference of one data row, as the columns hold them or as a task reads them."""

    answer: str
    reference: str | None


RowReader = Callable[[RowText], RowText]
"""Turns the text of the columns into what grader and teacher get."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    load: Callable[[], Task]
    load_row_reader: Callable[[], RowReader]


def _load_arithmetic() -> Task:
    from trd_ray.tasks.arithmetic import ArithmeticTask

    return ArithmeticTask()


def _load_math() -> Task:
    from trd_ray.tasks.math import MathTask

    return MathTask()


def _load_plain_reader() -> RowReader:
    return lambda row: row


def _load_math_reader() -> RowReader:
    from trd_ray.tasks.math.answers import final_answer, reference_solution

    def read(row: RowText) -> RowText:
        reference = None if row.reference is None else reference_solution(row.reference)
        return RowText(answer=final_answer(row.answer), reference=reference)

    return read


_TASKS = {
    "arithmetic": _Entry(load=_load_arithmetic, load_row_reader=_load_plain_reader),
    "math": _Entry(load=_load_math, load_row_reader=_load_math_reader),
}


def task_names() -> tuple[str, ...]:
    """Every known task, in alphabetical order."""
    return tuple(sorted(_TASKS))


def load_task(name: str) -> Task:
    """The task called `name`, or that of an import path. Raises `ConfigError` if there is none."""
    if is_import_path(name):
        from trd_ray.tasks.custom import load_custom_task

        return load_custom_task(name)
    return _entry(name).load()


def own_templates(name: str) -> Mapping[str, str] | None:
    """The templates that a task of an import path brings along; None for one that has a folder."""
    if not is_import_path(name):
        return None
    from trd_ray.tasks.custom import load_custom_task

    return load_custom_task(name).templates


def load_row_reader(name: str) -> RowReader:
    """How the task called `name` reads data rows. Raises `ConfigError` if there is none.

    A task of an import path gets the text of the columns as it is.
    """
    return _load_plain_reader() if is_import_path(name) else _entry(name).load_row_reader()


def _entry(name: str) -> _Entry:
    if name not in _TASKS:
        near = difflib.get_close_matches(name.lower(), _TASKS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"set data.task to one of {', '.join(task_names())}"
        raise ConfigError(
            describe(
                "unknown task",
                where="data.task",
                got=repr(name),
                expected=f"one of {', '.join(task_names())}, or package.module:Class",
                remedy=remedy,
            )
        )
    return _TASKS[name]
