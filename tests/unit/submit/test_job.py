"""The request that is sent: command, environment, what people see."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.submit.job import (
    JOB_CONFIG,
    STARTER,
    DriverOptions,
    entrypoint,
    git_commit,
    job_request,
    parse_env,
    parse_resources,
)
from trd_ray.config_loader import load_config
from trd_ray.errors import ConfigError

ROOT = Path(__file__).parents[3]
TRD_OPD = ROOT / "configs/experiment/trd_opd.yaml"


def test_the_command_replaces_the_shell_and_names_no_option_of_the_user():
    assert shlex.split(entrypoint(resume=True)) == ["exec", "sh", STARTER, JOB_CONFIG, "--resume"]
    assert (ROOT / STARTER).is_file()


def test_a_request_tells_people_what_it_is(tmp_path: Path):
    config = load_config(TRD_OPD, ["run.dir=/shared/runs/a b'c"])
    options = DriverOptions(num_cpus=1.5, resources=(("head_room", 1.0),), env=(("NCCL_DEBUG", "INFO"),))
    request = job_request(config, options, config_name="trd_opd", folder=tmp_path)
    again = job_request(config, options, config_name="trd_opd", folder=tmp_path)
    assert request.submission_id != again.submission_id
    assert request.metadata == {
        "job_name": "a b'c",
        "config": "trd_opd",
        "method": config.method.sentence(),
        "run_dir": "/shared/runs/a b'c",
    }
    assert request.num_cpus == 1.5 and request.resources == {"head_room": 1.0}
    # generate_s + 2 learn_s + sync_s + 60
    assert request.env_vars == {
        "NCCL_DEBUG": "INFO",
        "RAY_JOB_STOP_WAIT_TIME_S": str(600 + 2 * 1800 + 300 + 60),
    }


def test_no_secret_of_this_environment_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("RAY_AUTH_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "geheim")
    config = load_config(TRD_OPD, ["run.dir=/shared/x"])
    assert "geheim" not in repr(job_request(config, DriverOptions(), config_name="c", folder=tmp_path))


@pytest.mark.parametrize(
    "text",
    ["HF_TOKEN=geheim", "AWS_SECRET_ACCESS_KEY=geheim", "WANDB_API_KEY=geheim", "db_password=geheim",
     "PYTHONPATH=geheim", "=geheim", "A B=geheim"],
)  # fmt: skip
def test_variables_that_may_not_travel_are_refused_without_their_value(text: str):
    with pytest.raises(ConfigError, match="cannot be sent") as caught:
        parse_env([text])
    assert "geheim" not in str(caught.value)


def test_variables_and_resources_are_read():
    assert parse_env(["NCCL_SOCKET_IFNAME=eth0", "A=b=c", "EMPTY="]) == (
        ("NCCL_SOCKET_IFNAME", "eth0"), ("A", "b=c"), ("EMPTY", ""),
    )  # fmt: skip
    assert parse_resources(["head=0.5"]) == (("head", 0.5),)


@pytest.mark.parametrize("text", ["head", "head=", "head=0", "head=-1", "head=nan", "=1", "head=many"])
def test_malformed_resources_are_refused(text: str):
    with pytest.raises(ConfigError, match="malformed resource"):
        parse_resources([text])


def test_the_commit_is_noted_and_changes_show(tmp_path: Path):
    assert git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / "a").write_text("1")
    for arguments in (["init", "-q"], ["add", "a"], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *arguments], check=True, timeout=60)
    commit = git_commit(tmp_path)
    assert commit is not None and len(commit) == 40
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{commit}+changes"


def test_the_starter_takes_the_python_that_its_parent_is(tmp_path: Path):
    """This process stands in for Ray's worker: it has Ray's library in memory. The PATH has no Python."""
    train = tmp_path / "launch/train.py"
    train.parent.mkdir()
    train.write_text("import sys\nprint(sys.executable, sys.argv[1:])\n")
    code = (
        "import ray, subprocess\n"
        f"command = 'exec sh {ROOT / STARTER} job.yaml --resume'\n"
        "subprocess.run(command, shell=True, check=True, env={'PATH': '/usr/bin:/bin'})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    chosen = done.stdout.strip().splitlines()[-1]
    assert chosen.endswith("['job.yaml', '--resume']")
    assert Path(chosen.split(" ")[0]).parent == Path(sys.executable).parent


def test_the_starter_refuses_a_python_without_ray(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROOT / STARTER), "job.yaml"], capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/bin:/bin", "TRD_RAY_PYTHON": str(python)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "--python PATH" in done.stderr
