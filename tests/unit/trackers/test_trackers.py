"""All trackers of a run together: opening, ids, names, the end, and what is refused before a start."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import logging
import threading

import pytest

from tests.unit.step_records import step
from tests.unit.trackers.scripted import ScriptedTracker
from trd_ray.choices import TrackerKind
from trd_ray.config import RunConfig, TrackingConfig, TrdConfig
from trd_ray.errors import ConfigError, MissingDependencyError
from trd_ray.evaluation import GradedSample, summarise
from trd_ray.run_folder import RunFolder
from trd_ray.trackers import RunEnd, Trackers, check_trackers
from trd_ray.trackers.guard import GuardLimits
from trd_ray.trackers.session import TrackedRun

QUICK = GuardLimits(pauses_s=(0.01,), open_s=5.0, close_s=5.0)
TWO = (TrackerKind.WANDB, TrackerKind.MLFLOW)


class Openers:
    """Opens scripted trackers, and keeps what they were told."""

    def __init__(self, **given: ScriptedTracker) -> None:
        self.given = given
        self.runs: dict[str, TrackedRun] = {}

    def __call__(self, kind, run):
        self.runs[kind] = run

        def open_tracker() -> ScriptedTracker:
            tracker = self.given[kind]
            if run.known_id is not None:
                tracker.run_id = run.known_id
            return tracker

        return open_tracker


def config(*kinds: TrackerKind, run_dir: str = "runs/x", **tracking: object) -> TrdConfig:
    return TrdConfig(run=RunConfig(trackers=kinds, dir=run_dir), tracking=TrackingConfig(**tracking))


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "my-run")


def test_every_tracker_has_the_same_names_and_the_run_knows_its_ids(folder):
    scripted = {"wandb": ScriptedTracker(run_id="w1"), "mlflow": ScriptedTracker(run_id="m1")}
    openers = Openers(**scripted)
    with Trackers(config(*TWO, project="p"), folder, limits=QUICK, open_with=openers) as trackers:
        samples = [GradedSample(prompt_id="1", correct=True, num_tokens=3, truncated=False)]
        trackers.on_eval(summarise(samples, learner_step=0, dataset="testbed:held_out"))
        trackers.on_stage("rollout", 1, 2)
        trackers.on_step(step(1))
    assert scripted["wandb"].rows == scripted["mlflow"].rows
    (at_0, evaluation), (at_1, numbers) = scripted["wandb"].rows
    assert (at_0, at_1) == (0, 1)
    assert evaluation["eval/testbed_held_out/avg_at_1"] == 1.0
    assert numbers["learner/loss_nats"] == 0.5 and numbers["accuracy/flips_wrong_to_right"] == 0.0
    assert "refinement/kept_share" not in numbers  # not known, not 0
    assert {tracker.ended for tracker in scripted.values()} == {RunEnd.FINISHED}
    assert json.loads(folder.trackers.read_text()) == {"wandb": "w1", "mlflow": "m1"}
    assert openers.runs["wandb"].name == "my-run" and openers.runs["wandb"].known_id is None


def test_a_resumed_run_goes_on_under_its_ids(folder):
    for first_step, known in ((1, None), (5, "w1")):
        openers = Openers(wandb=ScriptedTracker(run_id="w1"))
        with Trackers(
            config(TrackerKind.WANDB), folder, first_step=first_step, limits=QUICK, open_with=openers
        ):
            pass
        assert (openers.runs["wandb"].known_id, openers.runs["wandb"].first_step) == (known, first_step)
    # A tracker that is added later does not disturb the others.
    openers = Openers(wandb=ScriptedTracker(run_id="?"), mlflow=ScriptedTracker(run_id="m1"))
    with Trackers(config(*TWO), folder, limits=QUICK, open_with=openers):
        pass
    assert json.loads(folder.trackers.read_text()) == {"wandb": "w1", "mlflow": "m1"}


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (asyncio.CancelledError(), RunEnd.STOPPED), (KeyboardInterrupt(), RunEnd.STOPPED),
        (RuntimeError("lost"), RunEnd.FAILED),
    ],
)  # fmt: skip
def test_a_tracker_learns_how_the_run_ended(folder, error, ended):
    tracker = ScriptedTracker()
    with (
        pytest.raises(type(error)),
        Trackers(config(TrackerKind.WANDB), folder, limits=QUICK, open_with=Openers(wandb=tracker)),
    ):
        raise error
    assert tracker.ended is ended


def test_a_run_that_was_stopped_is_no_failure(folder):
    tracker = ScriptedTracker()
    with Trackers(
        config(TrackerKind.WANDB), folder, limits=QUICK, open_with=Openers(wandb=tracker)
    ) as trackers:
        trackers.stopped()
    assert tracker.ended is RunEnd.STOPPED


def test_one_that_breaks_or_hangs_leaves_the_others_whole_and_is_named(folder, caplog):
    release = threading.Event()

    def broken(learner_step: int) -> None:
        raise OSError(28, "No space left on device")

    def hanging(learner_step: int) -> None:
        release.wait()

    whole = ScriptedTracker()
    openers = Openers(
        tensorboard=whole,
        wandb=ScriptedTracker(before=broken),
        mlflow=ScriptedTracker(before=hanging),
        trackio=ScriptedTracker(),
    )
    limits = GuardLimits(pauses_s=(0.01,), close_s=0.5)
    with (
        caplog.at_level(logging.WARNING),
        Trackers(config(*TrackerKind), folder, limits=limits, open_with=openers) as trackers,
    ):
        for number in (1, 2):
            trackers.on_step(step(number))
    release.set()
    assert whole.steps == [1, 2]
    assert "mlflow did not end within 0.5 s and is left behind" in caplog.text
    assert "wandb lacks 2 of the rows" in caplog.text and "No space left on device" in caplog.text
    assert "mlflow lacks 2 of the rows" in caplog.text and "it did not answer" in caplog.text


def test_one_that_cannot_be_opened_is_bad_input_and_the_others_are_closed(folder):
    whole = ScriptedTracker()

    def open_with(kind, run):
        def refuse() -> ScriptedTracker:
            raise ConnectionError("https://me:hunter2@host refused")

        return refuse if kind is TrackerKind.MLFLOW else lambda: whole

    with pytest.raises(ConfigError) as caught:
        Trackers(config(*TWO), folder, limits=QUICK, open_with=open_with).__enter__()
    text = str(caught.value)
    assert "the tracker mlflow cannot be opened" in text and "ConnectionError" in text
    assert "hunter2" not in text
    assert whole.ended is RunEnd.FAILED
    assert not folder.trackers.exists()


def test_ids_that_cannot_be_read_are_bad_input(folder):
    folder.trackers.write_text("[1")
    with pytest.raises(ConfigError, match=r"trackers\.json"):
        Trackers(config(TrackerKind.WANDB), folder, open_with=Openers()).__enter__()


def test_the_configuration_goes_without_secrets(folder):
    openers = Openers(wandb=ScriptedTracker())
    base = config(TrackerKind.WANDB)
    with_secret = dataclasses.replace(
        base, data=dataclasses.replace(base.data, train="https://me:pw@host/rows.jsonl?X-Amz-Signature=abc")
    )
    with Trackers(with_secret, folder, limits=QUICK, open_with=openers):
        pass
    run = openers.runs["wandb"]
    assert run.flat_config()["data.train"] == "https://***@host/rows.jsonl?X-Amz-Signature=***"
    assert run.flat_config()["run.seed"] == "0"
    assert run.flat_config()["run.trackers"] == '["wandb"]'
    assert "pw" not in json.dumps(run.config)


@pytest.mark.parametrize(
    ("kind", "module", "package"),
    [
        (TrackerKind.TENSORBOARD, "tensorboard", "pip install tensorboard"),
        (TrackerKind.WANDB, "wandb", "pip install wandb"),
        (TrackerKind.MLFLOW, "mlflow", "pip install mlflow-skinny"),
        (TrackerKind.MLFLOW, "sqlalchemy", "pip install sqlalchemy"),
        (TrackerKind.TRACKIO, "trackio", "pip install trackio"),
    ],
)
def test_a_missing_package_is_named_with_its_command(monkeypatch, kind, module, package):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == module else find_spec(name, *a)
    )
    with pytest.raises(MissingDependencyError) as caught:
        check_trackers(config(kind))
    assert package in str(caught.value) and "run.trackers" in str(caught.value)


def test_a_server_of_mlflow_needs_no_database_packages(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name in ("sqlalchemy", "alembic") else find_spec(name, *a),
    )
    check_trackers(config(TrackerKind.MLFLOW, mlflow_uri="http://127.0.0.1:5000"))
    with pytest.raises(MissingDependencyError):
        check_trackers(config(TrackerKind.MLFLOW, mlflow_uri="http://127.0.0.1:5000", offline=True))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("project", ""), ("project", "a/b"), ("name", "a\nb"), ("tags", ("ok", "")), ("tags", ("a,b",)),
        ("mlflow_uri", "https://me:hunter2@host"),
    ],
)  # fmt: skip
def test_options_that_no_tracker_would_take_are_refused(option, value):
    with pytest.raises(ConfigError, match=rf"tracking\.{option}") as caught:
        TrackingConfig(**{option: value})
    assert "hunter2" not in str(caught.value)
