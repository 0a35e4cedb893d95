"""What a resumed run may change, and that two drivers never share a run folder."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest

from launch.dry_run import show_plan
from launch.train import _resume
from trd_ray.buffer_log import BufferLog
from trd_ray.config import PipelineConfig, RunConfig, TrdConfig
from trd_ray.config_loader import dump_config, load_config
from trd_ray.data import FiniteStream
from trd_ray.errors import CheckpointError, ConfigError, DataError
from trd_ray.ledger import PromptCount
from trd_ray.resume import check_same_run
from trd_ray.run_folder import RunFolder
from trd_ray.run_state import PendingPrompt, RunState
from trd_ray.staleness import check_staleness
from trd_ray.types import Problem

EXPERIMENT = Path(__file__).parents[2] / "configs/experiment/trd_opd.yaml"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(TrdConfig()))
    return path


@pytest.mark.parametrize(
    "override",
    [
        "run.num_steps=7",
        "learner.optimizer.learning_rate=1e-5",
        "teacher.sampling.max_tokens=99",
        "timeouts.sync_s=9",
        "pipeline.over_stale=use",
        "pipeline.log_targets=false",
        "learner.micro_batch_tokens=512",
        "learner.kl_chunk_size=64",
        "learner.activation_checkpointing=false",
        "weight_sync.verify_every=7",
    ],
)
def test_what_messages_tell_to_change_may_change(saved: Path, override: str):
    check_same_run(saved, load_config(saved, [override]))


def test_staleness_may_be_raised_as_a_run_that_is_too_stale_says_and_not_lowered(tmp_path: Path):
    saved = tmp_path / "config.yaml"
    options = ["pipeline.stage_barrier=false", "pipeline.max_staleness=1"]
    saved.write_text(dump_config(load_config(EXPERIMENT, options)))
    check_same_run(saved, load_config(saved, ["pipeline.max_staleness=2"]))
    with pytest.raises(ConfigError, match=r"pipeline\.max_staleness: 1 then, 0 now"):
        check_same_run(saved, load_config(saved, ["pipeline.max_staleness=0"]))


def test_a_dry_run_of_a_resumption_compares_with_the_run_that_is_there(tmp_path: Path, capsys):
    config = load_config(EXPERIMENT, [f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(ConfigError, match="run"):
        show_plan(config, no_ray=True, resume=True)
    folder = RunFolder.create(tmp_path / "run")
    folder.config.write_text(dump_config(config))
    folder.metrics.write_text("")
    show_plan(config, no_ray=True, resume=True)
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=4))
    with pytest.raises(ConfigError, match=r"run\.seed: 0 then, 4 now"):
        show_plan(other, no_ray=True, resume=True)
    assert "placement: one process" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "named"),
    [("run.seed=4", "run.seed: 0 then, 4 now"), ("method.divergence=reverse_kl", "method.divergence")],
)
def test_what_makes_it_another_run_is_named(saved: Path, override: str, named: str):
    with pytest.raises(ConfigError, match=named):
        check_same_run(saved, load_config(saved, [override]))


def began(run_dir: Path, log: Path, *, log_targets: bool) -> tuple[RunFolder, TrdConfig]:
    """A run that has just written its configuration, and that configuration."""
    folder = RunFolder.create(run_dir)
    pipeline = PipelineConfig(log_url=str(log), log_targets=log_targets)
    config = TrdConfig(run=RunConfig(dir=str(run_dir)), pipeline=pipeline)
    folder.config.write_text(dump_config(config))
    return folder, config


def resume_with_log(folder: RunFolder, config: TrdConfig, *, log_targets: bool) -> None:
    pipeline = dataclasses.replace(config.pipeline, log_targets=log_targets)
    _resume(folder, dataclasses.replace(config, pipeline=pipeline))


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize("log_targets", [True, False])
def test_the_log_of_another_run_is_never_set_aside(tmp_path: Path, log_targets: bool, claimed: bool):
    log = BufferLog(str(tmp_path / "log"))
    other = began(tmp_path / "other", tmp_path / "log", log_targets=True)
    ours = began(tmp_path / "ours", tmp_path / "log", log_targets=False)
    if claimed:  # logs of an older version are not
        log.claim(other[0].path)
    log.write_step([], learner_step=1)
    with pytest.raises(ConfigError, match=r"pipeline\.log_url") if log_targets else nullcontext():
        resume_with_log(*ours, log_targets=log_targets)
    assert log.steps() == (1,)
    resume_with_log(*other, log_targets=log_targets)
    assert log.steps() == (), "its own is, where no checkpoint holds the step"


def test_a_log_that_failed_can_be_turned_off(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "log").write_text("not a folder")
    run = began(tmp_path / "run", tmp_path / "log" / "deep", log_targets=True)
    resume_with_log(*run, log_targets=False)
    assert "stays there" in caplog.text
    with pytest.raises(DataError, match=r"(?s)pipeline\.log_url.*log_targets=false"):
        resume_with_log(*run, log_targets=True)


def test_second_driver_is_refused(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run")
    with (
        folder.locked(),
        pytest.raises(ConfigError, match="another process drives"),
        RunFolder(folder.path).locked(),
    ):
        pass
    with folder.locked():
        pass


def stream() -> FiniteStream:
    return FiniteStream((Problem(prompt_id="a", problem="p", answer="x"),), seed=0)


def state_with_a_pending_prompt() -> RunState:
    return RunState(
        learner_step=1,
        stream=stream().state(),
        num_drawn=3,
        num_extra=1,
        prompts=PromptCount(num_in=3, num_consumed=1, num_rejected=1, num_pending=1),
        pending=(
            PendingPrompt(
                problem=Problem(prompt_id="a", problem="p", answer="x"), epoch=0, sample_index=1, seed=5
            ),
        ),
    )


def test_run_state_reads_back_and_names_a_torn_file(tmp_path: Path):
    state = state_with_a_pending_prompt()
    state.write(tmp_path)
    assert RunState.read(tmp_path) == state
    stream().restore(RunState.read(tmp_path).stream)
    (tmp_path / "run_state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run_state\.json"):
        RunState.read(tmp_path)


def test_no_rollouts_have_no_staleness():
    assert check_staleness([], learner_version=3, pipeline=PipelineConfig()) == 0


def test_run_dir_expands_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = dataclasses.replace(TrdConfig(), run=RunConfig(dir="~/runs/x"))
    assert RunFolder(config.run.dir).path == tmp_path / "runs" / "x"
