"""The shipped models are small and do what the testbed needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from trd_ray.tasks.arithmetic import ArithmeticTask, Split, generate_problems
from trd_ray.tasks.arithmetic.problems import parse_problem
from trd_ray.templates import TemplateName
from trd_ray.testbed.corpus import make_user_message
from trd_ray.testbed.model import load_model
from trd_ray.testbed.paths import models_path, student_path, teacher_path
from trd_ray.testbed.sampling import SamplerSettings, sample
from trd_ray.testbed.tokenizer import build_tokenizer


def solve_rate(path: Path, *, num_problems: int, temperature: float = 1.0) -> float:
    """Share of held-out problems that a shipped model solves."""
    problems = list(generate_problems(seed=5, split=Split.HELD_OUT, num=num_problems))
    users = [make_user_message(TemplateName.STUDENT, parse_problem(p.problem)) for p in problems]
    settings = SamplerSettings(temperature=temperature, seed=5)
    answers = sample(load_model(path), build_tokenizer(), users, settings)
    return sum(
        ArithmeticTask().grade(p, a.text).correct for p, a in zip(problems, answers, strict=True)
    ) / len(problems)


def test_shipped_files_are_under_8_mb() -> None:
    assert sum(f.stat().st_size for f in models_path().rglob("*") if f.is_file()) < 8_000_000


def test_same_architecture() -> None:
    teacher, student = load_model(teacher_path()), load_model(student_path())
    assert teacher.config.vocab_size == student.config.vocab_size == len(build_tokenizer())
    assert 700_000 < sum(p.numel() for p in teacher.parameters()) < 1_100_000


@pytest.mark.parametrize(("temperature", "at_least"), [(0.0, 0.95), (1.0, 0.93)])
def test_teacher_solves_held_out_problems(temperature: float, at_least: float) -> None:
    assert solve_rate(teacher_path(), num_problems=200, temperature=temperature) >= at_least


def test_student_solves_some() -> None:
    assert 0.3 <= solve_rate(student_path(), num_problems=300) <= 0.65


def test_held_out_problems_are_the_same_everywhere() -> None:
    first = [p.problem for p in generate_problems(seed=5, split=Split.HELD_OUT, num=3)]
    assert first == ["73+8+13", "96-62-25", "63-40+76-83+78"]
