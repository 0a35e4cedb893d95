from __future__ import annotations

import json

import pytest

from trd_ray.errors import ConfigError, DataError
from trd_ray.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def save(folder: RunFolder, step: int, content: str = "weights") -> None:
    with folder.writing_checkpoint(step) as path:
        (path / "model").write_text(content)


def test_names(folder):
    names = [folder.config, folder.metrics, folder.eval, folder.trajectories, folder.checkpoint(7)]
    assert [str(n.relative_to(folder.path)) for n in names] == [
        "config.yaml", "metrics.jsonl", "eval.jsonl", "trajectories", "checkpoints/step_7",
    ]  # fmt: skip
    assert [n.name for n in (folder.tensorboard, folder.report)] == ["tensorboard", "report.html"]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_a_new_run_refuses_a_folder_that_holds_one(folder, name):
    RunFolder.create(folder.path)  # made, but nothing was run: no objection
    (folder.path / name).write_text("x")
    with pytest.raises(ConfigError) as refusal:
        RunFolder.create(folder.path)
    assert str(folder.path) in str(refusal.value)
    assert "--resume" in str(refusal.value)
    assert RunFolder.open(folder.path).path == folder.path


def test_open_refuses_a_folder_without_a_run_and_create_a_file(folder, tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        RunFolder.open(folder.path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder.create(file)


def test_the_latest_checkpoint_is_by_number_and_skips_torn_ones(folder):
    assert folder.latest_checkpoint() is None
    for step in (9, 10):
        save(folder, step)
    with pytest.raises(RuntimeError), folder.writing_checkpoint(11) as path:
        (path / "model").write_text("half")
        raise RuntimeError
    folder.checkpoint(12).mkdir()  # made by hand, empty
    assert [c.learner_step for c in folder.complete_checkpoints()] == [9, 10]
    latest = folder.latest_checkpoint()
    assert (latest.learner_step, latest.path) == (10, folder.checkpoint(10))


def test_an_interrupted_checkpoint_can_be_written_again(folder):
    with pytest.raises(RuntimeError), folder.writing_checkpoint(5) as path:
        (path / "left_over").touch()
        raise RuntimeError
    save(folder, 5)
    save(folder, 5, "newer")
    assert [p.name for p in folder.checkpoint(5).iterdir()] == ["model"]
    assert (folder.checkpoint(5) / "model").read_text() == "newer"
    assert [p.name for p in folder.checkpoints.iterdir()] == ["step_5"]


def test_pruning_keeps_the_newest_and_clears_left_overs(folder):
    for step in (2, 4, 10):
        save(folder, step)
    with pytest.raises(RuntimeError), folder.writing_checkpoint(12):
        raise RuntimeError
    (folder.checkpoints / "step_11.unfinished.partial").mkdir()  # of a learner that was killed
    assert folder.prune_checkpoints(keep=2) == (folder.checkpoint(2),)
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["step_10", "step_4"]
    assert folder.prune_checkpoints(keep=2) == ()
    with pytest.raises(ValueError, match="keep is 0"):
        folder.prune_checkpoints(keep=0)


def rows(path) -> list[int]:
    return [json.loads(line)["learner_step"] for line in path.read_text().splitlines()]


def test_rewind_moves_later_rows_aside(folder):
    folder.metrics.write_text("".join(f'{{"learner_step": {i}}}\n' for i in range(1, 6)) + '{"learner_st')
    folder.eval.write_text('{"learner_step": 0}\n{"learner_step": 4}\n')
    for step in (3, 4):
        (folder.trajectories / f"step_{step:06d}.parquet").write_text(str(step))
    assert folder.rewind(3) == 3 + 1 + 1
    assert rows(folder.metrics) == [1, 2, 3]
    assert rows(folder.eval) == [0]
    assert [p.name for p in folder.trajectories.iterdir()] == ["step_000003.parquet"]
    aside = folder.set_aside / "resume_1_from_step_3"
    assert (aside / "metrics.jsonl").read_text().splitlines()[-1] == '{"learner_st'
    assert (aside / "trajectories" / "step_000004.parquet").read_text() == "4"
    # The next resume has nothing to move, and the one after that does not overwrite the first.
    assert folder.rewind(3) == 0
    with folder.metrics.open("a") as file:
        file.write('{"learner_step": 4}\n')
    assert folder.rewind(3) == 1
    assert rows(folder.set_aside / "resume_2_from_step_3" / "metrics.jsonl") == [4]


def test_rewind_to_an_older_checkpoint_moves_later_ones_aside(folder):
    for step in (5, 10):
        save(folder, step)
    assert folder.rewind(5) == 1
    assert folder.latest_checkpoint().learner_step == 5
    assert (folder.set_aside / "resume_1_from_step_5" / "checkpoints" / "step_10" / "model").exists()


def test_rewind_of_an_empty_folder_and_of_a_damaged_row(folder):
    assert folder.rewind(0) == 0
    folder.metrics.write_text('{"learner_step": 1}\nnot json\n')
    with pytest.raises(DataError, match=r"metrics.jsonl, line 2"):
        folder.rewind(1)
    assert folder.metrics.read_text() == '{"learner_step": 1}\nnot json\n'
