"""What is refused before anything is sent, and what is left to the cluster."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from launch.submit.checks import check_submission
from trd_ray.config_loader import load_config
from trd_ray.errors import ConfigError, DataError, ModelError
from trd_ray.model_files import resolve_model

ROOT = Path(__file__).parents[3]
TRD_OPD = ROOT / "configs/experiment/trd_opd.yaml"
QWEN = ROOT / "configs/experiment/qwen3/trd_opd_4b.yaml"
RUN = "run.dir=/shared/runs/first"


def check(*overrides: str, folder: Path, config: Path = TRD_OPD, run: str = RUN):
    return check_submission(load_config(config, [run, *overrides]), folder)


def rows(path: Path, *problems: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return path


def test_the_job_joins_the_cluster_that_it_runs_on(tmp_path: Path):
    checked = check("ray.address=local", folder=tmp_path)
    assert checked.config.ray.address == "auto"
    assert checked.config.run.dir == "/shared/runs/first"
    assert checked.needed == () and checked.unchecked == ()


@pytest.mark.parametrize("run_dir", ["runs/first", "./x", "s3://bucket/run"])
def test_a_run_folder_that_would_vanish_is_refused(tmp_path: Path, run_dir: str):
    with pytest.raises(ConfigError, match=r"where: +run\.dir") as caught:
        check(folder=tmp_path, run=f"run.dir={run_dir}")
    assert "remedy:   add for example run.dir=/shared/runs/" in str(caught.value)


def test_a_log_that_would_vanish_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"pipeline\.log_url"):
        check("pipeline.log_url=logs", folder=tmp_path)
    check("pipeline.log_url=s3://bucket/log", folder=tmp_path)


def test_what_only_the_cluster_has_is_left_to_it(tmp_path: Path):
    checked = check(
        "student.model=/shared/models/none", "teacher.model=someone/unknown", "data.task=math",
        "data.train=s3://bucket/train.jsonl", "data.eval=/shared/none.jsonl", folder=tmp_path,
    )  # fmt: skip
    assert set(checked.unchecked) == {
        "student.model=/shared/models/none", "teacher.model=someone/unknown",
        "data.train=s3://bucket/train.jsonl", "data.eval=/shared/none.jsonl",
    }  # fmt: skip


def test_models_of_published_figures_are_planned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trd_ray.planned_models.cached", lambda name: None)
    assert "student.model=Qwen/Qwen3-4B-Instruct-2507" in check(folder=tmp_path, config=QWEN).unchecked
    with pytest.raises(ConfigError, match=r"teacher\.engine\.max_model_len"):
        check("teacher.engine.max_model_len=50000", folder=tmp_path, config=QWEN)


def test_relative_paths_travel_and_are_checked_as_the_job_will_see_them(tmp_path: Path):
    shutil.copytree(resolve_model("testbed:student"), tmp_path / "models/mine")
    rows(tmp_path / "train.jsonl", {"problem": "1+1", "answer": "2"})
    checked = check(
        "student.model=models/mine",
        "data.task=math",
        "data.train=./train.jsonl",
        'data.eval=""',
        folder=tmp_path,
    )
    assert set(checked.needed) == {tmp_path / "models/mine", tmp_path / "train.jsonl"}
    assert checked.unchecked == ()
    rows(tmp_path / "train.jsonl", {"answer": "2"})
    with pytest.raises(DataError, match=r"train\.jsonl"):
        check(
            "student.model=models/mine",
            "data.task=math",
            "data.train=train.jsonl",
            'data.eval=""',
            folder=tmp_path,
        )
    # The data is looked at also where a model is on the cluster alone.
    with pytest.raises(DataError, match=r"train\.jsonl"):
        check(
            "student.model=/shared/x",
            "data.task=math",
            "data.train=train.jsonl",
            'data.eval=""',
            folder=tmp_path,
        )


@pytest.mark.parametrize(
    "override",
    [
        "student.model=models/none/deep",
        "data.train=train.jsonl",
        "data.eval=../eval.jsonl",
        "student.model=../mine",
    ],
)
def test_relative_paths_outside_of_the_working_directory_are_refused(tmp_path: Path, override: str):
    (tmp_path / "mine").mkdir()
    rows(tmp_path / "eval.jsonl", {"problem": "1+1", "answer": "2"})
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ConfigError, match="a relative path that the job will not find") as caught:
        check("data.task=math", override, folder=folder)
    assert override.split("=")[0] in str(caught.value) and "--working-dir" in str(caught.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ModelError):
        check("student.model=mine", folder=tmp_path)


def test_sizes_and_tasks_are_checked(tmp_path: Path):
    with pytest.raises(ConfigError, match="the engine's context is longer"):
        check("generator.engine.max_model_len=100000", folder=tmp_path)
    with pytest.raises(ConfigError, match="unknown task"):
        check("data.task=arithmatic", folder=tmp_path)


def test_code_of_ones_own_is_tried_from_the_folder_that_travels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "path", [*sys.path])
    loss = ("method.divergence=custom", "method.divergence_function=travels:own")
    (tmp_path / "travels.py").write_text("def own(log_q, log_p): return (log_q - log_p).sum()\n")
    with pytest.raises(ConfigError, match=r"method\.divergence_function"):
        check(*loss, folder=tmp_path)
    (tmp_path / "also_travels.py").write_text("own = 3\n")
    gate = ("method.refine_gate.kind=custom", "method.refine_gate.function=also_travels:own")
    with pytest.raises(ConfigError, match=r"method\.refine_gate\.function"):
        check(*gate, folder=tmp_path)
    (tmp_path / "travels_too.py").write_text("def own(candidate): return True\n")
    check(*gate, "method.refine_gate.function=travels_too:own", folder=tmp_path)


def test_more_cores_than_this_machine_has_are_the_clusters_affair(tmp_path: Path):
    check("generator.num_actors=1000", folder=tmp_path)
