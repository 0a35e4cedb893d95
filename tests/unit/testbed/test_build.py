"""A tiny build from end to end, and a check of what it made."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from trd_ray.testbed.build import BuildPlan, BuildProgress, build
from trd_ray.testbed.check import Rate, check
from trd_ray.testbed.training import Schedule


def test_tiny_build_and_check(tmp_path: Path) -> None:
    tiny = Schedule(num_steps=2, batch_size=4, num_warmup_steps=1)
    plan = BuildPlan(
        base=tiny,
        draft=tiny,
        student=tiny,
        weak_student=tiny,
        teacher=tiny,
        base_checkpoints=(1,),
        student_checkpoints=(2,),
        num_rollouts=6,
    )
    progress: list[BuildProgress] = []
    build(tmp_path, seed=0, report=progress.append, plan=plan)
    stages = list(dict.fromkeys(p.stage for p in progress))
    assert stages == [
        "base",
        "rollouts of the base",
        "draft",
        "student",
        "rollouts of the student",
        "teacher",
        "weak student",
    ]
    assert all(p.num_done <= p.num_total for p in progress)
    for name in ("teacher", "student", "weak_student"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert str(model.dtype) == "torch.bfloat16"
        assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    titles: list[str] = []
    report = check(tmp_path, num_problems=4, report=titles.append)
    assert report.teacher_greedy.num_total == 4
    assert len(report.teacher_rewrites) == len(report.student_privileged_rewrites) == 5
    assert "teacher, greedy" in titles


def test_rate() -> None:
    # Wilson: p = 0.5, n = 100, z^2 = 3.8415: middle 0.5, half sqrt(0.25/100 + 3.8415/40000) * 1.96 / 1.0384
    low, high = Rate(num_hits=50, num_total=100).ci95
    assert abs(low - 0.4038) < 1e-3
    assert abs(high - 0.5962) < 1e-3
    assert Rate(num_hits=0, num_total=0).ci95 == (0.0, 1.0)
