"""Resources of trials, their processes, and the queue that Ray Tune asks; without a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ray import cloudpickle

from launch.sweep.queue import Proposals, TrialQueue, settings_of, suggestion_of
from launch.sweep.resources import driver_request, most_at_once, num_fitting, private_request
from launch.sweep.trial import NAME, VALUE, TrialWork
from launch.sweep.trial_process import TrialProcess, trial_environment
from tests.unit.sweep.sweep_files import record, sweep_of, write_evals
from trd_ray.config_loader import load_config
from trd_ray.errors import ConfigError
from trd_ray.placement_plan import placement_plan
from trd_ray.sweep.options import MetricConfig, TrialsConfig
from trd_ray.sweep.state import SweepFolder, SweepState, TrialStatus, require_same_search

ROOT = Path(__file__).parents[3]
GIB = 2**30
CONFIG = load_config(ROOT / "configs/experiment/trd_opd.yaml")  # three actors, 0.5 cores and 2 GiB each


def test_a_private_trial_asks_for_its_actors_and_itself():
    assert private_request(CONFIG, TrialsConfig(), {"CPU": 8.0, "memory": 64.0 * GIB}) == {
        "CPU": 2.0, "memory": 6.0 * GIB,
    }  # fmt: skip
    assert private_request(CONFIG, TrialsConfig(no_ray=True, driver_cpus=1.0), {"CPU": 8.0}) == {"CPU": 1.0}


def test_a_trial_never_asks_for_more_than_there_is():
    assert private_request(CONFIG, TrialsConfig(), {"CPU": 1.0, "memory": 64.0 * GIB})["CPU"] == 1.0


def test_on_a_cluster_only_the_driver_is_reserved():
    assert driver_request(TrialsConfig(), "node:10.0.0.1") == {"CPU": 0.5, "node:10.0.0.1": 0.001}


@pytest.mark.parametrize(
    ("nodes", "num"),
    [
        # Each trial: three bundles of 0.5 cores anywhere, and a driver of 0.5 on the first node.
        ([{"CPU": 2.0, "memory": 64 * GIB}], 1),
        ([{"CPU": 8.0, "memory": 64 * GIB}], 4),
        ([{"CPU": 8.0, "memory": 13 * GIB}], 2),
        # The actors of the first may fill the node that the second's driver must be on.
        ([{"CPU": 1.0, "memory": 64 * GIB}, {"CPU": 8.0, "memory": 64 * GIB}], 1),
        # 1.5 cores in all, but no node with half a core free for the third bundle.
        ([{"CPU": 0.5, "memory": 64 * GIB}, {"CPU": 0.9, "memory": 64 * GIB}, {"CPU": 0.4}], 0),
    ],
)
def test_how_many_trials_fit_on_nodes(nodes: list[dict[str, float]], num: int):
    assert num_fitting(placement_plan(CONFIG), TrialsConfig(), nodes) == num
    assert most_at_once([CONFIG], TrialsConfig(), nodes) == max(1, num)
    assert most_at_once([CONFIG], TrialsConfig(max_concurrent=1), nodes) == 1


def test_the_largest_trial_bounds_how_many_run_at_once():
    large = load_config(ROOT / "configs/experiment/trd_opd.yaml", ["generator.num_actors=4"])
    nodes = [{"CPU": 8.0, "memory": 64.0 * GIB}]
    assert most_at_once([CONFIG, large], TrialsConfig(), nodes) == 2  # 3.5 cores each


def test_a_trial_does_not_take_itself_for_a_worker_of_ray():
    given = {
        "RAY_JOB_ID": "1",
        "RAY_RAYLET_PID": "2",
        "RAY_TMPDIR": "/t",
        "PATH": "/bin",
        "OMP_NUM_THREADS": "1",
    }
    assert trial_environment(given) == {"RAY_TMPDIR": "/t", "PATH": "/bin", "OMP_NUM_THREADS": "1"}


def test_a_process_is_asked_to_stop_and_its_last_words_are_kept(tmp_path: Path):
    code = (
        "import signal, sys, time\n"
        "def stop(*_):\n    print('checkpoint written'); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, stop)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    (tmp_path / "log").write_text("of an earlier attempt\n")
    process = TrialProcess([sys.executable, "-c", code], log=tmp_path / "log", directory=tmp_path)
    wait_for("ready", tmp_path / "log")
    assert process.exit_code() is None and not process.wait(0.01)
    process.ask_to_stop()
    assert process.wait(30) and process.exit_code() == 1
    assert process.last_words() == "ready\ncheckpoint written"
    process.kill()  # nothing is there any more


def wait_for(text: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_a_trial_ends_with_the_process_that_started_it(tmp_path: Path):
    child = (
        "from launch.sweep.trial_process import end_with\nimport os, sys, time\n"
        "end_with(int(sys.argv[1]))\nprint(os.getpid(), flush=True)\ntime.sleep(120)\n"
    )
    owner = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])\ntime.sleep(120)\n"
    )
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", owner], stdout=file, cwd=ROOT)
    wait_for("\n", log)
    orphan = psutil.Process(int(log.read_text()))
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    _, alive = psutil.wait_procs([orphan], timeout=30)
    assert not alive


def test_a_run_that_has_begun_is_resumed(tmp_path: Path):
    work = TrialWork(
        folder=tmp_path, directory=Path.cwd(), metric=MetricConfig(), trials=TrialsConfig(no_ray=True)
    )
    assert work.arguments("a") == ["train", f"{tmp_path}/configs/a.yaml", "--no-ray"]
    write_evals(SweepFolder(tmp_path).run("a"), [(0, 0.5)])
    assert work.arguments("a")[-1] == "--resume"


SEARCH = (
    "axes:\n  learner.optimizer.learning_rate: {loguniform: [1.0e-5, 1.0e-3]}\n"
    "  method: {choice: [opd, sft]}\n"
    "search: {kind: optuna, num_samples: 6}\n"
)


def test_suggestions_and_settings_are_inverse(tmp_path: Path):
    axes = sweep_of(tmp_path, SEARCH + "zip: [{run.num_steps: [1, 2], run.eval_every: [3, 4]}]\n").axes
    suggestion = {"learner.optimizer.learning_rate": 2e-4, "method": 1, "run.num_steps": 0}
    settings = settings_of(axes, suggestion)
    assert dict(settings) == {
        "learner.optimizer.learning_rate": 2e-4, "method": "sft", "run.num_steps": 1, "run.eval_every": 3,
    }  # fmt: skip
    assert suggestion_of(axes, settings) == suggestion


def searched(
    tmp_path: Path, records: list, text: str = SEARCH, *overrides: str
) -> tuple[TrialQueue, SweepState, SweepFolder]:
    sweep = sweep_of(tmp_path, text, *overrides)
    folder = SweepFolder(tmp_path / "out")
    folder.path.mkdir(exist_ok=True)
    state = SweepState(folder, records)
    require_same_search(sweep, state, folder)
    proposals = Proposals(sweep, state, folder, on_new=lambda record, _: state.put(record))
    return TrialQueue(state, proposals), state, folder


def test_optuna_proposes_and_learns(tmp_path: Path):
    queue, state, folder = searched(tmp_path, [])
    for i in range(6):
        suggestion = queue.suggest(str(i))
        rate = dict(state[suggestion[NAME]].settings)["learner.optimizer.learning_rate"]
        assert load_config(folder.config(suggestion[NAME])).learner.optimizer.learning_rate == rate
        queue.on_trial_complete(str(i), {VALUE: rate * 1000})
    assert queue.suggest("7") == "FINISHED" and len(state.records) == 6
    study = queue._proposals._optuna._ot_study
    assert [trial.value for trial in study.trials] == [
        pytest.approx(dict(r.settings)["learner.optimizer.learning_rate"] * 1000) for r in state.records
    ]


def test_ray_tune_can_write_its_copy_of_the_queue(tmp_path: Path):
    queue, _, _ = searched(tmp_path, [])
    queue.suggest("0")
    assert cloudpickle.loads(cloudpickle.dumps(queue)).__dict__ == {}


def test_a_resumed_search_runs_the_failed_again_and_knows_the_ended(tmp_path: Path):
    settings = (("learner.optimizer.learning_rate", 1e-4), ("method", "opd"))
    done = record("done", settings=settings)
    failed = record("failed", settings=settings, status=TrialStatus.PENDING)
    write_evals(SweepFolder(tmp_path / "out").run("done"), [(4, 0.75)])
    queue, state, _ = searched(tmp_path, [done, failed])
    assert queue.suggest("0") == {NAME: "failed"}
    queue.on_trial_complete("0", {VALUE: 0.5})
    study = queue._proposals._optuna._ot_study
    assert [trial.value for trial in study.trials] == [0.75]
    assert [queue.suggest(str(i))[NAME] in state for i in range(1, 5)] == [True] * 4
    assert queue.suggest("5") == "FINISHED"


def ended(tmp_path: Path, text: str, *overrides: str) -> list:
    """A search one of whose trials, as Optuna proposed it, is done."""
    queue, state, folder = searched(tmp_path, [], text, *overrides)
    name = queue.suggest("0")[NAME]
    write_evals(folder.run(name), [(4, 0.75)])
    return [replace(state[name], status=TrialStatus.DONE, attempts=1)]


def test_a_resumed_search_refuses_another_option_by_trial_and_key(tmp_path: Path):
    records = ended(tmp_path, SEARCH + "set: {run.num_steps: 30}\n")
    with pytest.raises(ConfigError) as error:
        searched(tmp_path, records, SEARCH + "set: {run.num_steps: 600}\n")
    assert f"{records[0].name}: run.num_steps: 30 then, 600 now" in str(error.value)
    # 4 is that of the base configuration.
    with pytest.raises(ConfigError, match=r"run\.num_steps: 30 then, 4 now"):
        searched(tmp_path, records, SEARCH)


def test_a_resumed_search_accepts_what_no_number_depends_on(tmp_path: Path):
    queue, *_ = searched(tmp_path, ended(tmp_path, SEARCH), SEARCH, "timeouts.start_s=5")
    assert len(queue._proposals._optuna._ot_study.trials) == 1


RATE = "axes: {learner.optimizer.learning_rate: {loguniform: [1.0e-4, 1.0e-3]}"
STEPS = "run.num_steps: {choice: [30]}"
OPTUNA = "\nsearch: {kind: optuna, num_samples: 6}\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f"{RATE}, {STEPS}, pipeline.prompts_per_step: [8, 16]}}", "pipeline.prompts_per_step"),
        (f"{RATE}}}", "run.num_steps"),
        (f"{RATE}, {STEPS.replace('30', '40')}}}", "run.num_steps"),
        (f"{RATE.replace('1.0e-4', '9.99e-4')}, {STEPS}}}", "learner.optimizer.learning_rate"),
        (f"axes: {{learner.optimizer.learning_rate: [0.5], {STEPS}}}", "learner.optimizer.learning_rate"),
    ],
    ids=["axis added", "axis removed", "value removed", "range narrowed", "range made a grid"],
)
def test_a_resumed_search_refuses_axes_that_do_not_hold_its_trials(tmp_path: Path, text: str, key: str):
    records = ended(tmp_path, f"{RATE}, {STEPS}}}{OPTUNA}")
    with pytest.raises(ConfigError) as error:
        searched(tmp_path, records, text + OPTUNA)
    message = str(error.value)
    assert key in message and records[0].name in message
    assert "restore the axis" in message and "sweep.dir" in message


def test_axes_of_a_resumed_search_may_grow(tmp_path: Path):
    records = ended(tmp_path, f"{RATE}, {STEPS}}}{OPTUNA}")
    text = f"{RATE.replace('1.0e-4', '1.0e-5')}, {STEPS.replace('30', '20, 30')}}}{OPTUNA}"
    queue, *_ = searched(tmp_path, records, text)
    (known,) = queue._proposals._optuna._ot_study.trials
    assert (known.params["run.num_steps"], known.value) == (1, 0.75)


def test_this_process_starts_trials_that_watch_it():
    from launch.sweep.trial_process import guarded_command

    assert guarded_command(["train"])[1:] == ["-m", "launch.sweep.trial_process", str(os.getpid()), "train"]
