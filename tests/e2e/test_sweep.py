"""Whole sweeps, from a file to a leaderboard, with real trials."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import CONFIGS, SMALL, run
from trd_ray.metrics import read_evals, read_metrics
from trd_ray.sweep.state import SweepFolder, SweepState, TrialStatus

TEXT = f"""
base: {CONFIGS / "testbed.yaml"}
axes: {{method: [{CONFIGS.parent / "method/trd_opd.yaml"}, {CONFIGS.parent / "method/opd_reverse_kl.yaml"}]}}
set: {{run: {{num_steps: 1}}}}
"""


def sweep(tmp_path: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "sweep.yaml"
    path.write_text(TEXT + text)
    options = [f"sweep.dir={tmp_path / 'out'}", *SMALL, *arguments]
    return run([sys.executable, "-m", "launch.cli", "sweep", str(path), *options])


def rows(tmp_path: Path) -> dict[str, dict[str, str]]:
    with (tmp_path / "out" / "leaderboard.csv").open() as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_two_methods_on_the_real_stack(tmp_path: Path):
    done = sweep(tmp_path, "")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = SweepFolder(tmp_path / "out")
    assert set(rows(tmp_path)) == {"trd_opd", "opd_reverse_kl"}
    for name, row in rows(tmp_path).items():
        run_folder = folder.run(name)
        assert float(row["mean"]) == pytest.approx(read_evals(run_folder.eval)[-1].avg_at_k)
        assert row["metric"] == "avg@2" and row["n"] == "1" and int(row["num_tokens"]) > 0
        assert (run_folder.checkpoint(1) / "hf").is_dir() and run_folder.report.exists()
    assert "2 of 2 trials ended" in done.stdout


@pytest.mark.slow
def test_two_seeds_of_two_methods_of_which_one_fails_once(tmp_path: Path):
    more = "seeds: [0, 1]\ntrials: {no_ray: true}\n"
    in_the_way = tmp_path / "out" / "trials" / "trd_opd__seed=1"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a run folder belongs")
    done = sweep(tmp_path, more)
    assert done.returncode == 1, done.stdout + done.stderr
    folder = SweepFolder(tmp_path / "out")
    failed = SweepState.read(folder)["trd_opd__seed=1"]
    assert failed.status is TrialStatus.FAILED and "the run folder is a file" in failed.message
    assert rows(tmp_path)["trd_opd"]["num_failed"] == "1" and rows(tmp_path)["trd_opd"]["n"] == "1"
    written = folder.run("opd_reverse_kl__seed=0").metrics.stat().st_mtime_ns

    in_the_way.unlink()
    done = sweep(tmp_path, more, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert folder.run("opd_reverse_kl__seed=0").metrics.stat().st_mtime_ns == written
    assert {record.attempts for record in SweepState.read(folder).records} == {1, 2}
    for name, row in rows(tmp_path).items():
        values = [read_evals(folder.run(f"{name}__seed={seed}").eval)[-1].avg_at_k for seed in (0, 1)]
        assert float(row["mean"]) == pytest.approx(sum(values) / 2) and row["n"] == "2"
        assert float(row["ci95_low"]) <= float(row["mean"]) <= float(row["ci95_high"])
    last = list(rows(tmp_path).values())[-1]
    assert last["num_pairs"] == "2" and last["distinguishable"] in ("true", "false")
    losses = [read_metrics(folder.run(f"trd_opd__seed={seed}").metrics)[0].loss for seed in (0, 1)]
    assert losses[0] != losses[1]
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "| trd_opd__seed=1 | done |" in text


def test_a_bad_trial_is_refused_before_anything_is_started(tmp_path: Path):
    done = sweep(tmp_path, "", "student.model=nowhere/at_all_here")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "trial trd_opd:" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
