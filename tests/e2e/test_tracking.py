"""A real run under every tracker and under the eyes of Prometheus, ended by SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.e2e.processes import ROOT, command, descendants, wait_for_lines, wait_until_gone
from tests.ports import free_port
from tests.unit.trackers.wandb_file import wandb_records
from trd_ray.metrics import read_evals, read_metrics
from trd_ray.run_folder import RunFolder
from trd_ray.scalars import CLUSTER_METRICS, ClusterMetricKind, step_scalars

_PUBLISHED_WITHIN_S = 120.0
"""Ray reports every 10 s."""


def session_folder(log: Path) -> Path:
    found = re.search(r"actor logs are in\s+(\S+)/logs", log.read_text())
    assert found, log.read_text()
    return Path(found[1])


def scraped(session: Path) -> dict[str, float]:
    """What Prometheus would find: the samples of trd-ray at all addresses that Ray names to it, by name."""
    targets = json.loads((session / "prom_metrics_service_discovery.json").read_text())
    values = {}
    for address in targets[0]["targets"]:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ray_trd_ray_"):
                    assert sample.labels["SessionName"] == session.name  # what the board selects by
                    values[sample.name] = sample.value
    return values


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, float], str]:
    """The run's folder, what was scraped while it ran, and its output."""
    folder = tmp_path_factory.mktemp("tracked")
    run_dir, log = folder / "run", folder / "log"
    arguments = command(
        "trd_opd.yaml", run_dir, "run.num_steps=1000", "run.eval_every=0",
        "run.trackers=[tensorboard, wandb, mlflow, trackio]",
        "tracking.offline=true", "tracking.project=e2e", "ray.dashboard=true",
        f"ray.dashboard_port={free_port()}",
    )  # fmt: skip
    process = subprocess.Popen(
        arguments, stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
        env=os.environ | {"COLUMNS": "400", "TRACKIO_DIR": str(folder / "trackio")},
    )  # fmt: skip
    try:
        wait_for_lines(run_dir / "metrics.jsonl", 2, process)
        pids = descendants(process)
        values = published(session_folder(log), RunFolder(run_dir), process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(180) == 1, log.read_text()
    finally:
        process.kill()  # nothing to a process that has ended
    assert wait_until_gone(pids) == set(), "trackers end with the run"
    return RunFolder(run_dir), values, log.read_text()


def published(
    session: Path, folder: RunFolder, process: subprocess.Popen[bytes], log: Path
) -> dict[str, float]:
    """What is scraped once a step is whole in it. Until then agents may be starting, or too busy to answer,
    or the numbers of a step are being set one by one."""
    deadline = time.monotonic() + _PUBLISHED_WITHIN_S
    while True:
        try:
            values = scraped(session)
            problem = differences(values, folder)
        except OSError as error:
            values, problem = {}, str(error)
        if not problem:
            return values
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"{problem} after {_PUBLISHED_WITHIN_S} s"
        time.sleep(1.0)


def differences(values: dict[str, float], folder: RunFolder) -> str:
    """Where what was scraped is not the row of its step, or the sum of rows up to it; empty if nowhere."""
    at = int(values.get("ray_trd_ray_learner_step", 0))
    steps = read_metrics(folder.metrics)[:at]
    if not steps:
        return f"no step in {sorted(values)}"
    row = steps[-1].to_json()
    expected = {
        metric.scraped_name: pytest.approx(row[key])
        for key, metric in CLUSTER_METRICS.items()
        if metric.kind is ClusterMetricKind.GAUGE and not metric.by_dataset and row[key] is not None
    }
    for key in ("num_generated_tokens", "num_loss_tokens", "num_consumed"):
        expected[CLUSTER_METRICS[key].scraped_name] = sum(getattr(m, key) for m in steps)
    wrong = {name: (values.get(name), value) for name, value in expected.items() if values.get(name) != value}
    return f"step {at}, scraped and expected: {wrong}" if wrong else ""


def test_prometheus_finds_every_number_of_a_step_with_its_value(stopped):
    folder, values, _ = stopped  # not before all numbers of a step agree with their row
    (first,) = read_evals(folder.eval)
    assert values["ray_trd_ray_eval_avg_at_k"] == pytest.approx(first.avg_at_k)


def test_every_tracker_has_every_step_and_knows_that_the_run_was_stopped(stopped):
    folder, _, output = stopped
    steps = read_metrics(folder.metrics)
    expected = {m.learner_step: step_scalars(m) for m in steps}
    ids = json.loads(folder.trackers.read_text())

    events = EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0})
    events.Reload()
    found = {e.step: e.value for e in events.Scalars("learner/loss_nats")}
    assert found == pytest.approx({at: row["learner/loss_nats"] for at, row in expected.items()})

    (file,) = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    records = wandb_records(file)
    rows = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    steps_seen = {row["learner_step"]: row for row in rows if "learner/loss_nats" in row}
    assert set(steps_seen) == set(expected)
    for at, row in expected.items():
        assert {key: steps_seen[at][key] for key in row} == pytest.approx(row)
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [255]

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.path / 'mlflow.db'}")
    run = client.get_run(ids["mlflow"])
    assert run.info.status == "KILLED" and run.data.params["method.trajectory"] == "refined"
    history = client.get_metric_history(ids["mlflow"], "accuracy/refined")
    assert {m.step: m.value for m in history} == pytest.approx(
        {at: row["accuracy/refined"] for at, row in expected.items()}
    )

    assert trackio_steps(folder.path.parent / "trackio", ids["trackio"]) == sorted(expected)
    assert "lacks" not in output and "left behind" not in output and "Traceback" not in output


def trackio_steps(home: Path, run_id: str) -> list[int]:
    """In a process of its own: the library reads its folder's name once."""
    code = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage as S\n"
        f"rows = S.get_logs('e2e', 'run', run_id={run_id!r})\n"
        "print(json.dumps([row['step'] for row in rows if 'learner/loss_nats' in row]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120,
        env=os.environ | {"TRACKIO_DIR": str(home)},
    )  # fmt: skip
    return sorted(json.loads(done.stdout.strip().splitlines()[-1]))
