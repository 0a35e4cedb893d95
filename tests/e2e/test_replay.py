"""A run and its replay, as users start them."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import command, descendants, run, start, wait_for_lines, wait_until_gone
from trd_ray.metrics import read_metrics
from trd_ray.run_folder import RunFolder


def replay_command(source: Path, run_dir: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "launch.train", "--replay", str(source), f"run.dir={run_dir}", *arguments]


def losses(run_dir: Path) -> list[float]:
    return [m.loss for m in read_metrics(RunFolder(run_dir).metrics)]


def largest_difference(run_dir: Path) -> float:
    return json.loads(RunFolder(run_dir).replay.read_text())["largest_difference"]["relative"]


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps in one process."""
    run_dir = tmp_path_factory.mktemp("local") / "run"
    done = run(command("trd_opd.yaml", run_dir, "run.num_steps=3", 'data.eval=""', "--no-ray"))
    assert done.returncode == 0, done.stdout + done.stderr
    return run_dir


def test_a_replay_gives_the_losses_of_the_run(local_run: Path, tmp_path: Path):
    run_dir = tmp_path / "replay"
    done = run(replay_command(local_run, run_dir, "run.checkpoint_every=2", "--no-ray"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(run_dir) == losses(local_run)
    assert largest_difference(run_dir) == 0.0
    assert "largest relative difference to the run's losses: 0 " in done.stdout
    folder = RunFolder(run_dir)
    assert [c.learner_step for c in folder.complete_checkpoints()] == [2, 3]
    assert folder.report.exists() and not folder.buffer_log.exists()
    ours, theirs = (
        (RunFolder(path).checkpoint(3) / "hf" / "model.safetensors").read_bytes()
        for path in (run_dir, local_run)
    )
    assert ours == theirs, "the same steps make the same weights"


def test_another_learning_rate_is_tried_on_the_same_data(local_run: Path, tmp_path: Path):
    run_dir = tmp_path / "replay"
    done = run(replay_command(local_run, run_dir, "learner.optimizer.learning_rate=2e-3", "--no-ray"))
    assert done.returncode == 0, done.stdout + done.stderr
    first, *others = losses(run_dir)
    assert first == losses(local_run)[0], "the first loss is before any step"
    assert others != losses(local_run)[1:]
    assert "with learner.optimizer.learning_rate" in done.stdout


def test_a_dry_run_of_a_replay_starts_and_writes_nothing(local_run: Path, tmp_path: Path):
    done = run(replay_command(local_run, tmp_path / "replay", "--dry-run"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 steps" in done.stdout and "placement: learner-0" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_log_is_refused_before_anything_starts(tmp_path: Path):
    source = tmp_path / "run"
    options = ("run.num_steps=1", 'data.eval=""', "pipeline.log_targets=false", "--no-ray")
    done = run(command("trd_opd.yaml", source, *options))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not RunFolder(source).buffer_log.exists()
    done = run(replay_command(source, tmp_path / "replay"))
    assert done.returncode == 2
    assert "pipeline.log_targets=false" in done.stderr and "remedy" in done.stderr
    assert not (tmp_path / "replay").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "a replay needs a folder of its own"),
        (("configs/base.yaml",), "the configuration of its run"),
        (("--resume",), "starts anew"),
    ],
)
def test_wrong_use_is_exit_code_2(local_run: Path, arguments: tuple[str, ...], complaint: str):
    done = run([sys.executable, "-m", "launch.train", *arguments, "--replay", str(local_run)])
    assert done.returncode == 2 and complaint in " ".join(done.stderr.split()), done.stderr


def test_a_replay_is_not_resumed_as_a_run(local_run: Path, tmp_path: Path):
    run_dir = tmp_path / "replay"
    assert run(replay_command(local_run, run_dir, "--no-ray")).returncode == 0
    done = run([sys.executable, "-m", "launch.train", str(run_dir / "config.yaml"), "--resume", "--no-ray"])
    assert done.returncode == 2 and "cannot be resumed" in done.stderr


def test_a_resumed_run_writes_no_step_of_the_log_twice(tmp_path: Path):
    run_dir = tmp_path / "run"
    options = ("run.checkpoint_every=2", 'data.eval=""', "--no-ray")
    done = run(command("trd_opd.yaml", run_dir, "run.num_steps=3", *options))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = RunFolder(run_dir)
    folder.checkpoint(3).rename(run_dir / "lost")
    done = run(command("trd_opd.yaml", run_dir, "run.num_steps=3", *options, "--resume"))
    assert done.returncode == 0, done.stdout + done.stderr
    names = sorted(p.relative_to(folder.buffer_log).as_posix() for p in folder.buffer_log.rglob("*.parquet"))
    assert names == [
        "set_aside/resume_1_from_step_2/step_000003.parquet",
        *(f"step_{step:06d}.parquet" for step in (1, 2, 3)),
    ]
    done = run(replay_command(run_dir, tmp_path / "replay", "--no-ray"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert largest_difference(tmp_path / "replay") < 1e-6


@pytest.mark.slow
def test_a_replay_over_deepspeed_gives_the_losses_of_the_run(tmp_path: Path):
    source, run_dir = tmp_path / "run", tmp_path / "replay"
    done = run(command("trd_opd.yaml", source, "run.num_steps=3", 'data.eval=""'))
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(replay_command(source, run_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(run_dir) == pytest.approx(losses(source), rel=1e-6)
    assert largest_difference(run_dir) < 1e-6
    assert [c.learner_step for c in RunFolder(run_dir).complete_checkpoints()] == [3]


@pytest.mark.slow
def test_sigterm_ends_a_replay_with_a_checkpoint_and_no_process(tmp_path: Path):
    source, run_dir = tmp_path / "run", tmp_path / "replay"
    # Long enough that a signal after the first step comes before the last.
    options = ("run.num_steps=40", "pipeline.prompts_per_step=2", 'data.eval=""', "--no-ray")
    done = run(command("trd_opd.yaml", source, *options))
    assert done.returncode == 0, done.stdout + done.stderr
    process = start(replay_command(source, run_dir), tmp_path / "log")
    wait_for_lines(run_dir / "metrics.jsonl", 1, process)
    process.send_signal(signal.SIGSTOP)  # it makes many steps a second
    pids = descendants(process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    code = process.wait(120)
    text = (tmp_path / "log").read_text()
    assert wait_until_gone(pids) == set()
    assert code == 1 and "stopped after step" in text and "Traceback" not in text, text
    steps = [m.learner_step for m in read_metrics(RunFolder(run_dir).metrics)]
    checkpoint = RunFolder(run_dir).latest_checkpoint()
    assert checkpoint is not None and checkpoint.learner_step == steps[-1] < 40
