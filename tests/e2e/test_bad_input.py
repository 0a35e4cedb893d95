"""Bad input ends with exit code 2 and a message that says what, where and what to do; nothing starts."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import ray

from launch.cli import main
from tests.e2e.bad_input_cases import CASES, Case
from trd_ray.model_files import resolve_model

ROOT = Path(__file__).parents[2]
TRD_OPD = str(ROOT / "configs/experiment/trd_opd.yaml")


def run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["trd-ray", *arguments])
    # A command may set variables for the rest of its process, which here goes on with other tests.
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as caught:
        main()
    assert not ray.is_initialized()
    captured = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((captured.out + captured.err).split())


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    def call(*overrides: str) -> tuple[int, str]:
        return run_cli(monkeypatch, capsys, "train", TRD_OPD, f"run.dir={tmp_path / 'run'}", *overrides)

    return call


def copy_student(folder: Path) -> Path:
    shutil.copytree(resolve_model("testbed:student"), folder)
    return folder


def test_unknown_key(cli):
    code, text = cli("learner.optimiser.learning_rate=1")
    assert code == 2
    assert "learner.optimiser.learning_rate" in text
    assert "learner.optimizer.learning_rate" in text


def test_wrong_type(cli):
    code, text = cli("run.num_steps=several")
    assert code == 2
    assert "run.num_steps" in text and "'several'" in text and "int" in text


def test_missing_config_file(monkeypatch, capsys):
    code, text = run_cli(monkeypatch, capsys, "train", "none.yaml")
    assert code == 2
    assert "none.yaml" in text and "not found" in text


def test_missing_data_file(cli, tmp_path):
    code, text = cli("data.task=math", f"data.train={tmp_path}/none.jsonl", 'data.eval=""')
    assert code == 2
    assert "none.jsonl" in text


def test_row_without_problem(cli, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"problem": "1+1", "answer": "2"}) + "\n" + json.dumps({"answer": "2"}) + "\n")
    code, text = cli("data.task=math", f"data.train={path}", 'data.eval=""')
    assert code == 2
    assert "rows.jsonl" in text and "2" in text and "problem" in text


def test_privileged_method_needs_reference_solutions(cli, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"problem": "1+1", "answer": "2"}) + "\n")
    code, text = cli("data.task=math", f"data.train={path}", 'data.eval=""', "method.privileged=true")
    assert code == 2
    assert "rows.jsonl" in text and "solution" in text


def test_different_tokenizers(cli, tmp_path):
    folder = copy_student(tmp_path / "other")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["1"], vocab["2"] = vocab["2"], vocab["1"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, text = cli(f"student.model={folder}")
    assert code == 2
    assert "different tokenizers" in text
    assert "id 58: ['2'] (student), ['1'] (teacher)" in text


def test_model_folder_without_weights(cli, tmp_path):
    folder = copy_student(tmp_path / "hollow")
    (folder / "model.safetensors").unlink()
    code, text = cli(f"student.model={folder}")
    assert code == 2
    assert "hollow" in text and "weights" in text


def test_missing_model_folder(cli, tmp_path):
    code, text = cli(f"teacher.model={tmp_path / 'none'}")
    assert code == 2
    assert "none" in text


def test_prompt_longer_than_the_context(cli, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"problem": "1+" * 400 + "1", "answer": "401", "id": "long"}) + "\n")
    code, text = cli("data.task=math", f"data.train={path}", 'data.eval=""')
    assert code == 2
    assert "'long'" in text and "generator.engine.max_model_len" in text


def test_context_longer_than_the_model(cli):
    code, text = cli("generator.engine.max_model_len=100000")
    assert code == 2
    assert "generator.engine.max_model_len" in text


def test_more_actors_than_cores(cli):
    code, text = cli("generator.num_actors=4000")
    assert code == 2
    assert "cores" in text and "generator-0 0.5" in text and "num_actors" in text


def test_port_in_use(cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = cli("ray.dashboard=true", f"ray.dashboard_port={port}")
    assert code == 2
    assert str(port) in text and "in use" in text


def test_missing_vllm_is_said_and_not_replaced(cli, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else find_spec(name, *a)
    )
    code, text = cli()
    assert code == 2
    assert "no vllm" in text and "launch/setup.sh" in text


def test_run_folder_that_holds_a_run(cli, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    code, text = cli()
    assert code == 2
    assert "already holds a run" in text and "--resume" in text


def test_resume_under_another_configuration(monkeypatch, capsys, tmp_path):
    from trd_ray.config_loader import dump_config, load_config

    run_dir = f"run.dir={tmp_path / 'run'}"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_config(load_config(TRD_OPD, [run_dir])))
    code, text = run_cli(monkeypatch, capsys, "train", TRD_OPD, run_dir, "learner.zero_stage=3", "--resume")
    assert code == 2
    assert "learner.zero_stage: 1 then, 3 now" in text


@pytest.fixture(autouse=True)
def without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_wrong_input_names_the_place_and_the_remedy(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    for name, content in case.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = content.replace("{tmp}", str(tmp_path)).replace("{base}", TRD_OPD).encode()
        path.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    arguments = [text.replace("{tmp}", str(tmp_path)).replace("{base}", TRD_OPD) for text in case.arguments]
    code, text = run_cli(monkeypatch, capsys, *arguments)
    assert code == 2, text
    for part in case.parts:
        assert " ".join(part.split()) in text
    assert "Traceback" not in text
    assert ("where: " in text and "remedy: " in text) or "--help" in text or "requires an argument" in text
    assert sorted(tmp_path.rglob("*")) == before  # nothing was begun


def test_names_of_cases_are_unique_and_there_are_many():
    assert len({case.name for case in CASES}) == len(CASES) >= 50


def test_a_process_of_its_own_ends_so_too(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("run:\n  stepz: 3\n")
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "train", str(tmp_path / "c.yaml")],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[:4] == [
        "unknown option",
        f"  where:    run.stepz ({tmp_path / 'c.yaml'}:2:3)",
        "            2 |   stepz: 3",
        "              |   ^^^^^",
    ]
