"""A real pretrained model on real problems: SmolLM2-135M-Instruct on a sample of GSM8K, TRD-OPSD."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.e2e.processes import command, run
from trd_ray.convert import convert_smollm2
from trd_ray.metrics import read_metrics
from trd_ray.outcomes import Outcome
from trd_ray.run_folder import RunFolder
from trd_ray.trajectory_log import TrajectoryRow, read_trajectories

NUM_STEPS = 3


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_three_steps_of_trd_opsd(tmp_path: Path):
    model = tmp_path / "smollm2"
    convert_smollm2(model)
    arguments = command(
        "trd_opsd_gsm8k_smollm2.yaml",
        tmp_path / "run",
        f"student.model={model}",
        f"run.num_steps={NUM_STEPS}",
        "data.eval_problems=2",
        "weight_sync.verify_every=1",
        "generator.sampling.max_tokens=96",
        "eval.sampling.max_tokens=96",
        small=False,
    )
    done = run(arguments, timeout_s=2300)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = RunFolder(tmp_path / "run")
    metrics = read_metrics(folder.metrics)
    assert [m.learner_step for m in metrics] == list(range(1, NUM_STEPS + 1))
    for m in metrics:
        numbers = (
            m.loss,
            m.grad_norm,
            m.learning_rate,
            m.rollout_accuracy,
            m.refined_accuracy,
            m.tokens_per_s,
        )
        assert all(n is not None and math.isfinite(n) for n in numbers)
        assert m.loss > 0 and m.grad_norm > 0 and m.num_loss_tokens > 0
    # The generator's loaded weights were read back and compared with the learner's after each push.
    assert "verify_every: 1\n" in folder.config.read_text()
    rows = list(read_trajectories(folder.trajectories))
    check_rewrites([row for row in rows if row.outcome == Outcome.CONSUMED])


def check_rewrites(rows: list[TrajectoryRow]) -> None:
    """Text that is not the rollout; prose in most. A model this small also answers in bare formulas."""
    assert len(rows) >= NUM_STEPS
    for row in rows:
        assert row.trajectory_text.strip()
        assert row.trajectory_text != row.rollout_text
    prose = [row for row in rows if sum(word.isalpha() for word in row.trajectory_text.split()) >= 3]
    assert len(prose) > len(rows) / 2, [row.trajectory_text for row in rows if row not in prose]
