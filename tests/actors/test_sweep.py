"""Sweeps on a real Ray Tune, whose trials are scripted processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.sweep.run import run_sweep
from tests.actors.scripted_sweep import TRIAL
from tests.actors.scripted_trial import UNLUCKY_SEED
from tests.e2e.processes import process_names
from trd_ray.metrics import read_evals
from trd_ray.sweep.spec import Sweep, load_sweep
from trd_ray.sweep.state import SweepFolder, SweepState, TrialRecord, TrialStatus

ROOT = Path(__file__).parents[2]
BASE = ROOT / "configs/experiment/opd_reverse_kl.yaml"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"base: {BASE}\ndir: {tmp_path / 'out'}\nray: {{num_cpus: 4, object_store_gib: 0.2}}\n"
        f"trials: {{no_ray: true, stop_s: 60}}\n{text}"
    )
    return path


def sweep_of(tmp_path: Path, text: str) -> Sweep:
    return load_sweep(write(tmp_path, text))


def records(tmp_path: Path) -> dict[str, TrialRecord]:
    return {record.name: record for record in SweepState.read(SweepFolder(tmp_path / "out")).records}


ASHA = """
set: {run: {num_steps: 8, eval_every: 1}}
zip:
- learner.optimizer.learning_rate: [0.001, 0.0001]
  generator.sampling.temperature: [1.0, 6.0]
stop_early: {kind: asha, grace_steps: 2, reduction_factor: 2}
"""


def test_asha_stops_the_trial_that_is_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_sweep(sweep_of(tmp_path, ASHA), resume=False, command=TRIAL) == 0
    good, bad = records(tmp_path).values()
    assert (good.status, bad.status) == (TrialStatus.DONE, TrialStatus.STOPPED_EARLY)
    run = SweepFolder(tmp_path / "out").run(bad.name)
    # Asked once, and waited for: it ended by itself, before its last step.
    assert (run.path / "stopped").read_text().startswith("1 at ")
    assert 2 <= len(read_evals(run.eval)) < 8
    assert len(read_evals(SweepFolder(tmp_path / "out").run(good.name).eval)) == 8
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    assert text.index(f"| 1 | {good.variant} | 1.000") < text.index(f"| 2 | {bad.variant} | - |")
    assert "1 stopped early" in text and "avg@2" in text
    # An early stop is an end: nothing is left for a resume.
    before = (run.eval.read_bytes(), bad.attempts)
    assert run_sweep(sweep_of(tmp_path, ASHA), resume=True, command=TRIAL) == 0
    assert (run.eval.read_bytes(), records(tmp_path)[bad.name].attempts) == before


FAILING = f"set: {{run.num_steps: 3}}\nseeds: [{UNLUCKY_SEED}, 1]\n"


def test_only_the_failed_trial_is_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_sweep(sweep_of(tmp_path, FAILING), resume=False, command=TRIAL) == 1
    failed, done = records(tmp_path).values()
    assert (failed.status, done.status) == (TrialStatus.FAILED, TrialStatus.DONE)
    assert "exit code 1" in failed.message and "the disk is on fire" in failed.message
    assert "exit code 1 - DataError: the disk is on fire" in (tmp_path / "out/leaderboard.md").read_text()
    folder = SweepFolder(tmp_path / "out")
    untouched = folder.run(done.name).eval.stat().st_mtime_ns
    assert run_sweep(sweep_of(tmp_path, FAILING), resume=True, command=TRIAL) == 0
    again = records(tmp_path)
    assert {record.status for record in again.values()} == {TrialStatus.DONE}
    assert (again[failed.name].attempts, again[done.name].attempts) == (2, 1)
    assert folder.run(done.name).eval.stat().st_mtime_ns == untouched
    # Its run folder was resumed after its first step, not started anew.
    assert [r.learner_step for r in read_evals(folder.run(failed.name).eval)] == [1, 2, 3]
    assert "options train --no-ray --resume" in folder.log(failed.name).read_text()
    assert "2 of 2" in (tmp_path / "out/leaderboard.md").read_text()


SEARCH = """
set: {run: {num_steps: 2, eval_every: 1}}
axes: {learner.optimizer.learning_rate: {loguniform: [1.0e-5, 1.0e-3]}}
search: {kind: optuna, num_samples: 3}
"""


def test_optuna_makes_as_many_trials_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_sweep(sweep_of(tmp_path, SEARCH), resume=False, command=TRIAL) == 0
    made = records(tmp_path)
    assert len(made) == 3 and {record.status for record in made.values()} == {TrialStatus.DONE}
    # More samples are added to a search that has ended.
    more = sweep_of(tmp_path, SEARCH.replace("num_samples: 3", "num_samples: 4"))
    assert run_sweep(more, resume=True, command=TRIAL) == 0
    assert list(records(tmp_path))[:3] == list(made) and len(records(tmp_path)) == 4


def test_sigterm_ends_all_trials_and_a_resume_goes_on(tmp_path: Path):
    path = write(
        tmp_path, "set: {run.num_steps: 300, generator.sampling.temperature: 3.0}\nseeds: [0, 1, 2]\n"
        "metric: {name: avg_at_k}\n",
    )  # fmt: skip
    path.write_text(path.read_text().replace("stop_s: 60", "stop_s: 60, max_concurrent: 2"))
    process = start(path)
    folder = SweepFolder(tmp_path / "out")
    wait_until(process, lambda: all(len(evals(folder, seed)) >= 2 for seed in (0, 1)))
    children = psutil.Process(process.pid).children(recursive=True)
    assert sum("scripted_trial" in name for name in process_names(process)) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(180) == 1
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    statuses = [record.status for record in records(tmp_path).values()]
    assert statuses == [TrialStatus.INTERRUPTED, TrialStatus.INTERRUPTED, TrialStatus.PENDING]
    assert not folder.run("base__seed=2").path.exists()
    for seed in (0, 1):
        assert (folder.run(f"base__seed={seed}").path / "stopped").read_text().startswith("1 at ")
    assert json.loads(folder.state.read_text())["trials"][2]["attempts"] == 0


def start(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.actors.scripted_sweep", str(path)], cwd=ROOT, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def evals(folder: SweepFolder, seed: int) -> tuple[object, ...]:
    return read_evals(folder.run(f"base__seed={seed}").eval)


def wait_until(process: subprocess.Popen[bytes], reached: object, *, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():  # type: ignore[operator]
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
