"""What a sweep would cost, by hand; and a dry run that loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.sweep.dry_run import show_sweep
from tests.unit.step_records import step
from tests.unit.sweep.sweep_files import sweep_of
from trd_ray.config_loader import load_config
from trd_ray.errors import DataError
from trd_ray.json_lines import dump_line
from trd_ray.run_folder import RunFolder
from trd_ray.sweep.cost import measure, num_evals, trial_cost

ROOT = Path(__file__).parents[3]
TESTBED = ROOT / "configs/experiment"
SMALL = ["run.num_steps=10", "run.eval_every=4", "pipeline.prompts_per_step=8", "data.eval_problems=5",
         "eval.num_samples=2", "generator.sampling.max_tokens=10", "teacher.sampling.max_tokens=20",
         "eval.sampling.max_tokens=30"]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "rollouts", "tokens"),
    [
        # Evaluations after 0, 4, 8 and 10 steps: 4 x 5 x 2 = 40 answers of 30 tokens; 80 trajectories.
        ("opd_reverse_kl", 80 + 40, 80 * 10 + 1200),
        ("trd_opd", 80 + 40, 80 * (10 + 20) + 1200),
        ("seq_kd", 40, 80 * 20 + 1200),
        ("sft", 40, 1200),
    ],
)
def test_cost_of_a_trial(method: str, rollouts: int, tokens: int):
    cost = trial_cost(load_config(TESTBED / f"{method}.yaml", SMALL))
    assert (cost.num_steps, cost.num_trajectories, cost.num_rollouts, cost.most_tokens) == (
        10, 80, rollouts, tokens,
    )  # fmt: skip


def test_number_of_evaluations():
    for overrides, num in ((["run.eval_every=5"], 3), (["run.eval_every=0"], 2), (['data.eval=""'], 0)):
        assert num_evals(load_config(TESTBED / "sft.yaml", ["run.num_steps=10", *overrides])) == num


def test_another_run_tells_tokens_and_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = RunFolder.create(tmp_path / "run")
    rows = [step(1, step_s=50.0), step(2, step_s=4.0), step(3, step_s=4.0)]
    run.metrics.write_text("".join(dump_line(row.to_json()) for row in rows))
    by = measure(run.path)
    assert (by.seconds, by.tokens) == (0.5, 20.0)  # 8 trajectories and 160 tokens a step; the first warms up
    show_sweep(sweep_of(tmp_path, "axes: {method: [opd, sft]}\nseeds: [0, 1]\n"), like=run.path)
    shown = " ".join(capsys.readouterr().out.split())
    # 4 trials x 4 steps x 8 trajectories = 128.
    assert "16 steps, 128 trajectories" in shown and "2,560 tokens and 1 min 4 s" in shown
    assert "run.seed=1 method.trajectory=reference" in shown
    run.metrics.write_text("")
    with pytest.raises(DataError, match="too few steps"):
        measure(run.path)


def test_dry_run_loads_neither_torch_nor_ray():
    code = (
        "import sys\n"
        "sys.argv = ['trd-ray', 'sweep', 'configs/sweep/methods.yaml', '--dry-run']\n"
        "from launch.cli import app\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('torch', 'ray', 'vllm', 'transformers', 'pandas') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "4 trials" in done.stdout and done.stdout.strip().splitlines()[-1] == "[]"
