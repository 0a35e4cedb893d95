"""Every named method trains on the testbed, two steps each: one for each kind of work of the actors with real
vLLM, Ray and DeepSpeed; those that differ from it in loss or prompts alone in one process."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.e2e.processes import CONFIGS, ROOT, command, run
from trd_ray.choices import ScoreMethod
from trd_ray.config_loader import load_config
from trd_ray.metrics import StepMetrics, read_metrics
from trd_ray.run_folder import RunFolder
from trd_ray.trajectory_log import read_trajectories
from trd_ray.types import TrajectorySource

METHODS = sorted(path.stem for path in (ROOT / "configs/method").glob("*.yaml"))
ActorsWork = tuple[TrajectorySource, ScoreMethod | None, bool]
QUICK = ("run.num_steps=2", 'data.eval=""', "run.trackers=[]")


def actors_work(name: str) -> ActorsWork:
    """What a method asks of the actors: who writes, who scores, whether the teacher follows the learner."""
    config = load_config(CONFIGS / f"{name}.yaml")
    method = config.method
    return method.trajectory, config.teacher.score if method.scores else None, method.teacher_moves


def first_of_each_kind() -> frozenset[str]:
    first: dict[ActorsWork, str] = {}
    for name in METHODS:
        first.setdefault(actors_work(name), name)
    return frozenset(first.values())


OVER_RAY = first_of_each_kind()


def trained(name: str, run_dir: Path, *arguments: str) -> tuple[StepMetrics, ...]:
    """Train two steps and check what holds for every method."""
    done = run(command(f"{name}.yaml", run_dir, *QUICK, *arguments))
    assert done.returncode == 0, done.stdout + done.stderr
    config = load_config(RunFolder(run_dir).config)
    assert config.method.sentence() in " ".join(done.stdout.split())
    steps = read_metrics(RunFolder(run_dir).metrics)
    assert [step.learner_step for step in steps] == [1, 2]
    for step in steps:
        assert math.isfinite(step.loss)
        assert step.grad_norm > 0
        assert step.num_consumed > 0
        assert (step.rollout_accuracy is not None) == config.method.makes_rollout
    return steps


@pytest.mark.parametrize("name", METHODS)
def test_the_method_trains(name: str, tmp_path: Path):
    steps = trained(name, tmp_path / "run", *(() if name in OVER_RAY else ("--no-ray",)))
    assert RunFolder(tmp_path / "run").report.exists()
    method = load_config(tmp_path / "run" / "config.yaml").method
    rows = list(read_trajectories(tmp_path / "run" / "trajectories"))
    assert {row.trajectory_source for row in rows} == {method.trajectory}
    if method.trajectory is TrajectorySource.SPLICED:
        kept = [row for row in rows if row.num_kept]
        assert kept
        for row in kept:
            own = row.trajectory_token_ids[: row.num_kept].tolist()
            assert own == row.rollout_token_ids[: row.num_kept].tolist()
    if method.refines:
        assert all(step.refined_accuracy is not None for step in steps)
        assert all(step.edit_distance_mean is not None for step in steps)
        assert all(step.support_mean is not None for step in steps)


def test_adapters_train_and_score_without_a_second_copy(tmp_path: Path):
    """LoRA, the student's own initial weights as its teacher, sharded over two ranks."""
    trained(
        "opsd_forward_kl", tmp_path / "run", "learner.lora.rank=4", "teacher.score=learner",
        "learner.num_ranks=2", "learner.zero_stage=3",
    )  # fmt: skip
    assert (tmp_path / "run/checkpoints/step_2/adapter").is_dir()


def test_a_moving_teacher_rewrites_with_the_weights_that_the_learner_pushes(tmp_path: Path):
    trained(
        "trd_opsd", tmp_path / "run", "method.teacher_weights=ema", "method.ema_decay=0.5",
        "method.support=top_k", "method.top_k=8", "teacher.score=fused",
    )  # fmt: skip


@pytest.mark.parametrize("locator", ["teacher_probability", "first_difference"])
def test_every_locator_splices(locator: str, tmp_path: Path):
    steps = trained("trd_opd_spliced", tmp_path / "run", f"method.splice.locator={locator}")
    assert all(step.kept_share_mean is not None and step.kept_share_mean > 0 for step in steps)


def test_refused_refinements_leave_the_rollout_to_train_on(tmp_path: Path):
    steps = trained(
        "trd_opd", tmp_path / "run", "method.refine_gate.kind=failed_only",
        "method.refine_gate.on_refusal=rollout",
    )  # fmt: skip
    assert all(step.num_rejected == 0 for step in steps)
    refused = sum(step.refinement_refused_by_reason.get("rollout_correct", 0) for step in steps)
    assert refused > 0
    rows = list(read_trajectories(tmp_path / "run" / "trajectories"))
    assert sum(row.trajectory_source is TrajectorySource.ROLLOUT for row in rows) == refused
