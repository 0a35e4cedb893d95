"""The shipped models are small and do what the testbed needs."""

from __future__ import annotations

import pytest

from trd_ray.tasks.arithmetic import Split, generate_problems
from trd_ray.testbed.improve import held_out_accuracy
from trd_ray.testbed.model import load_model
from trd_ray.testbed.paths import models_path, student_path, teacher_path
from trd_ray.testbed.tokenizer import build_tokenizer


def test_shipped_files_are_under_8_mb() -> None:
    assert sum(f.stat().st_size for f in models_path().rglob("*") if f.is_file()) < 8_000_000


def test_same_architecture() -> None:
    teacher, student = load_model(teacher_path()), load_model(student_path())
    assert teacher.config.vocab_size == student.config.vocab_size == len(build_tokenizer())
    assert 700_000 < sum(p.numel() for p in teacher.parameters()) < 1_100_000


@pytest.mark.parametrize(("temperature", "at_least"), [(0.0, 0.95), (1.0, 0.93)])
def test_teacher_solves_held_out_problems(temperature: float, at_least: float) -> None:
    model = load_model(teacher_path())
    rate = held_out_accuracy(model, build_tokenizer(), num_problems=200, seed=5, temperature=temperature)
    assert rate >= at_least


def test_student_solves_some() -> None:
    rate = held_out_accuracy(load_model(student_path()), build_tokenizer(), num_problems=300, seed=5)
    assert 0.3 <= rate <= 0.65


def test_held_out_problems_are_the_same_everywhere() -> None:
    first = [p.problem for p in generate_problems(seed=5, split=Split.HELD_OUT, num=3)]
    assert first == ["73+8+13", "96-62-25", "63-40+76-83+78"]
