"""Each tracker against its real library: written, resumed, read back with the library's own reader."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.unit.trackers.wandb_file import ended_records, wandb_records
from trd_ray.run_folder import RunFolder
from trd_ray.trackers.session import RunEnd, TrackedRun, Tracker

FIRST = {"learner/loss_nats": 1.0, "eval/testbed_held_out/avg_at_8": 0.5, "learner/grad_norm": math.nan}
LATER = {"learner/loss_nats": 0.25}


def tracked(folder: RunFolder, *, first_step: int = 1, known_id: str | None = None) -> TrackedRun:
    return TrackedRun(
        folder=folder,
        project="trd-test",
        name="a run",
        tags=("cpu", "tiny"),
        offline=True,
        mlflow_uri="",
        config={"run": {"seed": 7, "trackers": ["wandb"]}, "data": {"train": "x" * 7000}},
        first_step=first_step,
        known_id=known_id,
    )


def write_and_resume(open_tracker: type[Tracker], folder: RunFolder) -> str:
    """Steps 1 to 3, stopped; then again 3, and 4, as a resume from a checkpoint after step 2 does."""
    tracker = open_tracker(tracked(folder))
    run_id = tracker.run_id
    tracker.record(FIRST, learner_step=1)
    for step in (2, 3):
        tracker.record(LATER, learner_step=step)
    tracker.close(RunEnd.STOPPED)
    resumed = open_tracker(tracked(folder, first_step=3, known_id=run_id))
    assert resumed.run_id == run_id
    for step in (3, 4):
        resumed.record({"learner/loss_nats": 0.125}, learner_step=step)
    resumed.close(RunEnd.FINISHED)
    return run_id


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def test_tensorboard(folder: RunFolder):
    from trd_ray.trackers.tensorboard_tracker import TensorBoardTracker

    write_and_resume(TensorBoardTracker, folder)
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(FIRST)
    losses = [(e.step, e.value) for e in events.Scalars("learner/loss_nats")]
    assert losses == [(1, 1.0), (2, 0.25), (3, 0.125), (4, 0.125)]
    assert math.isnan(events.Scalars("learner/grad_norm")[0].value)


def test_tensorboard_goes_on_once_the_disk_takes_it_again(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    from trd_ray.trackers.tensorboard_tracker import TensorBoardTracker

    tracker = TensorBoardTracker(tracked(folder))
    write = RecordWriter.write

    def full(self: RecordWriter, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    monkeypatch.setattr("threading.excepthook", lambda args: None)  # the thread of the writer ends with it
    with pytest.raises(OSError, match="No space left"):
        for _ in range(100):
            tracker.record(LATER, learner_step=1)
    monkeypatch.setattr(RecordWriter, "write", write)
    tracker.record(LATER, learner_step=1)
    tracker.close(RunEnd.FINISHED)
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    assert [e.value for e in events.Scalars("learner/loss_nats")] == [0.25]


def test_wandb_offline(folder: RunFolder):
    from trd_ray.trackers.wandb_tracker import WandbTracker

    run_id = write_and_resume(WandbTracker, folder)
    files = sorted((folder.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    rows, exits = [], []
    for file in files:
        records = ended_records(file)
        run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
        assert (run.project, run.display_name, run.run_id) == ("trd-test", "a run", run_id)
        assert set(run.tags) == {"cpu", "tiny"}
        config = {item.key: json.loads(item.value_json) for item in run.config.update if item.key}
        assert config["run"] == {"seed": 7, "trackers": ["wandb"]}
        for record in records:
            if record.WhichOneof("record_type") == "history":
                rows.append(
                    {
                        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                        for item in record.history.item
                    }
                )
            elif record.WhichOneof("record_type") == "exit":
                exits.append(record.exit.exit_code)
    losses = [(row["learner_step"], row["learner/loss_nats"]) for row in rows]
    assert losses == [(1, 1.0), (2, 0.25), (3, 0.25), (3, 0.125), (4, 0.125)]
    assert rows[0]["eval/testbed_held_out/avg_at_8"] == 0.5
    assert exits == [255, 0]
    kinds = {r.WhichOneof("record_type") for file in files for r in wandb_records(file)}
    assert not kinds & {"stats", "output", "output_raw", "files"}, (
        "no console, no machine, no code is recorded"
    )


def test_mlflow_in_a_file(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow.tracking import MlflowClient

    from trd_ray.trackers.mlflow_tracker import MlflowTracker

    run_id = write_and_resume(MlflowTracker, folder)
    client = MlflowClient(f"sqlite:///{folder.path / 'mlflow.db'}")
    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).name == "trd-test"
    assert (run.info.run_name, run.info.status) == ("a run", "FINISHED")
    assert run.data.tags["cpu"] == "true" and run.data.tags["trd_ray.resumed_before_step"] == "3"
    assert run.data.params["run.seed"] == "7" and run.data.params["run.trackers"] == '["wandb"]'
    assert len(run.data.params["data.train"]) == 6000
    history = client.get_metric_history(run_id, "learner/loss_nats")
    assert sorted((m.step, m.value) for m in history) == [
        (1, 1.0), (2, 0.25), (3, 0.125), (3, 0.25), (4, 0.125),
    ]  # fmt: skip
    assert client.get_metric_history(run_id, "eval/testbed_held_out/avg_at_8")[0].value == 0.5
    # In another store, to which the run is unknown, it goes on as a new one.
    other = RunFolder.create(folder.path.parent / "other")
    shutil.copy(folder.path / "mlflow.db", other.path / "mlflow.db")
    tracker = MlflowTracker(tracked(other, known_id="0" * 32))
    tracker.close(RunEnd.FAILED)
    assert tracker.run_id not in (run_id, "0" * 32)
    assert (
        MlflowClient(f"sqlite:///{other.path / 'mlflow.db'}").get_run(tracker.run_id).info.status == "FAILED"
    )


def test_trackio(folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from trd_ray.trackers.trackio_tracker import SQLiteStorage, TrackioTracker

    for name in ("trackio.utils", "trackio.sqlite_storage"):
        monkeypatch.setattr(f"{name}.TRACKIO_DIR", tmp_path / "trackio")
    run_id = write_and_resume(TrackioTracker, folder)
    assert (tmp_path / "trackio" / "trd-test.db").exists()
    rows = SQLiteStorage.get_logs("trd-test", "a run", run_id=run_id)
    losses = sorted((row["step"], row["learner/loss_nats"]) for row in rows)
    assert losses == [(1, 1.0), (2, 0.25), (3, 0.125), (3, 0.25), (4, 0.125)]
    assert rows[0]["eval/testbed_held_out/avg_at_8"] == 0.5
    saved = SQLiteStorage.get_run_config("trd-test", "a run", run_id=run_id)
    assert saved["run"]["seed"] == 7 and saved["tags"] == ["cpu", "tiny"]
    # A row that is tried again is there once.
    tracker = TrackioTracker(tracked(folder, known_id=run_id))
    for _ in range(2):
        tracker.record(LATER, learner_step=5)
    rows = SQLiteStorage.get_logs("trd-test", "a run", run_id=run_id)
    assert len([row for row in rows if row["step"] == 5]) == 1
