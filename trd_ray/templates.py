"""Prompt templates: Jinja2 texts that belong to a task, rendered in a sandbox.

Only the template itself is one. Problems, references and solutions are values, so braces or
template syntax inside them come through unchanged; nothing is HTML-escaped.

A task's folder `templates/` (of a task of the user's own, its attribute `templates`) holds, each with the
variables it may use:
    student.j2            problem
    privileged.j2         problem, reference
    refine.j2             problem, initial_solution
    refine_privileged.j2  problem, reference, initial_solution
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from importlib import resources

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trd_ray.tasks.registry import own_templates

_TELLING_LENGTH = 30


class TemplateName(StrEnum):
    """The prompts that every task has."""

    STUDENT = "student"
    PRIVILEGED = "privileged"
    REFINE = "refine"
    REFINE_PRIVILEGED = "refine_privileged"


def compile_template(text: str) -> Template:
    """Raises `jinja2.TemplateError` if it is none."""
    env = ImmutableSandboxedEnvironment(
        autoescape=False, undefined=StrictUndefined, keep_trailing_newline=False
    )
    return env.from_string(text)


@lru_cache(maxsize=64)
def _load(task_name: str, template: TemplateName) -> Template:
    own = own_templates(task_name)
    if own is not None:
        return compile_template(own[template.value])
    path = resources.files("trd_ray.tasks") / task_name / "templates" / f"{template.value}.j2"
    return compile_template(path.read_text(encoding="utf-8"))


def render(
    task_name: str,
    template: TemplateName,
    *,
    problem: str,
    reference: str | None = None,
    initial_solution: str | None = None,
) -> str:
    """Render the user message of one prompt (no chat template yet).

    Raises `jinja2.UndefinedError` if the template needs a value that is None.
    """
    values = {"problem": problem, "reference": reference, "initial_solution": initial_solution}
    return _load(task_name, template).render({k: v for k, v in values.items() if v is not None})


@lru_cache(maxsize=64)
def instructions(task_name: str, template: TemplateName) -> tuple[str, ...]:
    """The sentences of a prompt that are the same for every problem, without those so short that an answer
    may well hold them by chance."""
    fixed = render(task_name, template, problem="", reference="", initial_solution="")
    sentences = (part.strip(" .") for line in fixed.splitlines() for part in line.split(". "))
    return tuple(sentence for sentence in sentences if len(sentence) >= _TELLING_LENGTH)
