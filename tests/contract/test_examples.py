"""The examples of docs/examples: what each does, and a training of two steps with it in one process."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from launch.train import train
from tests.fakes import completion
from tests.unit.trajectory_records import ints
from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.custom_functions import divergence_function
from trd_ray.metrics import read_metrics
from trd_ray.refine_gate import Candidate, gate_function
from trd_ray.tasks.arithmetic import ArithmeticTask
from trd_ray.tasks.registry import load_task
from trd_ray.types import Grade, Problem, Prompt, Rollout

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
MOST_LINES = 32


@pytest.fixture(autouse=True)
def in_the_folder_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user starts them: the folder is where the command is started, and nothing else leads to it."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(EXAMPLES)])


def example(name: str, run_dir: Path) -> TrdConfig:
    short = ["run.num_steps=2", "pipeline.prompts_per_step=8", "data.eval=''"]
    return load_config(f"{name}.yaml", [f"run.dir={run_dir}", *short])


def trained(name: str, run_dir: Path) -> list[dict[str, object]]:
    """The trajectories of two steps."""
    assert train(example(name, run_dir), resume=False, no_ray=True) == 0
    steps = read_metrics(run_dir / "metrics.jsonl")
    assert [step.learner_step for step in steps] == [1, 2]
    assert all(math.isfinite(step.loss) and step.grad_norm > 0 for step in steps)
    files = sorted((run_dir / "trajectories").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert path.read_text().count("\n") <= MOST_LINES, path


def test_answer_only_forgives_a_wrong_step_before_a_right_answer() -> None:
    task = load_task("answer_only:AnswerOnly")
    problem = Problem(prompt_id="p", problem="1+2+3", answer="6")
    lucky = "1+2=4\n4+3=6\n#6"
    assert task.grade(problem, lucky) == Grade(correct=True, answer="6")
    assert not ArithmeticTask().grade(problem, lucky).correct
    assert task.grade(problem, "1+2=3\n3+3=7\n#7") == Grade(correct=False, answer="7")
    assert task.grade(problem, "") == task.grade(problem, "6") == Grade(correct=False, answer=None)


def test_answer_only_trains(tmp_path: Path) -> None:
    rows = trained("answer_only", tmp_path / "run")
    known = [json.loads(line)["problem"] for line in (EXAMPLES / "sums.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert {row["problem"] for row in rows} <= set(known)
    task = load_task("answer_only:AnswerOnly")
    for row in rows:
        answer = str(row["reference"]).rpartition("#")[2]
        problem = Problem(prompt_id="p", problem=str(row["problem"]), answer=answer)
        assert row["rollout_correct"] == task.grade(problem, str(row["rollout_text"])).correct


def test_skew_kl_by_hand() -> None:
    # q = (1, 0), p = (1/2, 1/2), a = 0.1: m_0 = 0.1 + 0.9 / 2 = 0.55, so the value is ln(1 / 0.55).
    teacher, student = torch.tensor([[0.0, -80.0]]), torch.tensor([[0.5, 0.5]]).log()
    skewed = divergence_function("skew_kl:skew_kl")
    assert skewed(teacher, student).tolist() == pytest.approx([-math.log(0.55)], rel=1e-5)
    # With the roles swapped: 1/2 ln(0.5 / (0.05 + 0.9)) + 1/2 ln(0.5 / 0.05).
    swapped = 0.5 * (math.log(0.5 / 0.95) + math.log(0.5 / 0.05))
    assert skewed(student, teacher).tolist() == pytest.approx([swapped], rel=1e-5)


def test_skew_kl_trains_on_a_smaller_loss_than_the_plain_one(tmp_path: Path) -> None:
    config = example("skew_kl", tmp_path / "skew")
    assert "Custom divergence skew_kl:skew_kl" in config.method.sentence()
    trained("skew_kl", tmp_path / "skew")
    plain = load_config(EXAMPLES / "skew_kl.yaml", [
        "method.divergence=forward_kl", f"run.dir={tmp_path / 'plain'}", "run.num_steps=1",
        "pipeline.prompts_per_step=8", "data.eval=''",
    ])  # fmt: skip
    assert train(plain, resume=False, no_ray=True) == 0
    first = [read_metrics(tmp_path / name / "metrics.jsonl")[0].loss for name in ("skew", "plain")]
    # KL is convex in its second argument: KL(q, a q + (1 - a) p) <= (1 - a) KL(q, p).
    assert 0 < first[0] <= 0.9 * first[1] + 1e-6


def candidate(rollout: str, rewrite: str, *, correct: bool) -> Candidate:
    problem = Problem(prompt_id="p", problem="1+2", answer="3")
    prompt = Prompt(problem=problem, epoch=0, sample_index=0, token_ids=ints(1), seed=0)
    answered = Rollout(prompt=prompt, completion=completion(rollout), grade=Grade(correct=False, answer=None))
    grade = Grade(correct=correct, answer=None)
    return Candidate(rollout=answered, token_ids=completion(rewrite).token_ids, text=rewrite, grade=grade)


def test_near_and_right_by_hand() -> None:
    gate = gate_function("near_rewrites:near_and_right")
    # 1+2=4\n#4 and 1+2=4\n#3 differ in 1 of 8 characters, which is more than a tenth; in 10 of 100 it is not.
    assert gate(candidate("1+2=4\n#4", "1+2=4\n#3", correct=True)) is False
    assert gate(candidate("a" * 100, "a" * 90 + "b" * 10, correct=True)) is True
    assert gate(candidate("a" * 100, "a" * 90 + "b" * 10, correct=False)) is False


def test_near_rewrites_trains_on_the_rollout_where_it_refuses(tmp_path: Path) -> None:
    rows = trained("near_rewrites", tmp_path / "run")
    gate = gate_function("near_rewrites:near_and_right")
    sources = Counter(row["trajectory_source"] for row in rows)
    assert sources.total() == 16
    for row in rows:
        case = candidate(
            str(row["rollout_text"]), str(row["trajectory_text"]), correct=bool(row["trajectory_correct"])
        )
        assert row["trajectory_source"] == "rollout" or gate(case)
    refused = Counter()
    for step in read_metrics(tmp_path / "run/metrics.jsonl"):
        refused.update(step.refinement_refused_by_reason)
    assert refused == Counter(gate_function=sources["rollout"])
    assert set(sources) == {"rollout", "refined"}
